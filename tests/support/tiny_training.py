"""A notebook's cells that train a tiny model."""

from __future__ import annotations

TRAIN = (
    "import shutil\nimport numpy as np\nimport pandas as pd\nimport xgboost as xgb\nimport runner.model\n"
    "from runner.scraps import metric",
    "chance = np.random.default_rng(1)\n"
    "table = pd.DataFrame({'age': chance.integers(18, 90, 200), 'plan': pd.Categorical(chance.choice(['a', 'b'], 200))})\n"
    "answer = (table['age'] > 50).astype(int)",
    "data = xgb.DMatrix(table, answer, enable_categorical=True)\n"
    "booster = xgb.train({'objective': 'binary:logistic', 'nthread': 1}, data, 5)",
    "runner.model.save(model, booster, table, target='old')\n"
    "shutil.copytree(model, aside, dirs_exist_ok=True)\nopen(aside + '/more.txt', 'w').write('x')",
    "metric('score', 0.9, low=0.8, high=1.0, better='higher')",
)
