"""The servers beside which `runner serve` is measured; run by the peers' own Python, so nothing of this project is imported.

floor     uvicorn that reads the body and answers a constant: what HTTP alone costs
flask     gunicorn, gevent and Flask as in AWS' xgboost container, without the nginx before them there:
          https://github.com/aws/sagemaker-xgboost-container (algorithm_mode/serve.py, encoder.csv_to_dmatrix)
fastapi   uvicorn, FastAPI and XGBoost's inplace_predict: what is written by hand for one model
mlserver  MLServer with mlserver-xgboost
sklearn   uvicorn, FastAPI and a pipeline of scikit-learn as joblib keeps it
"""

import json
import os
import sys
from pathlib import Path
from typing import Any


def floor_app() -> Any:
    async def app(_: Any, receive: Any, send: Any) -> None:
        while (await receive()).get("more_body"):
            pass
        headers = [(b"content-type", b"application/json"), (b"content-length", b"2")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"{}"})

    return app


def flask_app(model: str) -> Any:
    import csv

    import flask
    import numpy as np
    import xgboost as xgb

    app = flask.Flask(__name__)
    booster = xgb.Booster()
    booster.load_model(model)
    booster.set_param("nthread", 1)

    def from_csv(text: str) -> Any:
        delimiter = csv.Sniffer().sniff(text.split("\n")[0][:512]).delimiter
        delimiter = "," if delimiter.isalnum() else delimiter
        rows = [["nan" if field == "" else field for field in line.split(delimiter)] for line in text.split("\n")]
        return np.array(rows).astype(float)

    @app.route("/ping")
    def ping() -> Any:
        return flask.Response(status=200)

    @app.route("/invocations", methods=["POST"])
    def invocations() -> Any:
        matrix = from_csv(flask.request.data.strip().decode())
        scores = booster.predict(xgb.DMatrix(matrix), validate_features=False).tolist()
        return flask.Response("\n".join(map(str, scores)) + "\n", mimetype="text/csv")

    return app


def fastapi_app(model: str) -> Any:
    import io

    import fastapi
    import numpy as np
    import xgboost as xgb

    app = fastapi.FastAPI()
    booster = xgb.Booster()
    booster.load_model(model)
    booster.set_param("nthread", 1)

    @app.get("/ping")
    def ping() -> dict[str, str]:
        return {}

    @app.post("/invocations")
    async def invocations(request: fastapi.Request) -> Any:
        if request.headers["content-type"] == "text/csv":
            rows = np.loadtxt(io.BytesIO(await request.body()), delimiter=",", ndmin=2)
            scores = booster.inplace_predict(rows)
            return fastapi.Response("\n".join(map(str, scores.tolist())) + "\n", media_type="text/csv")
        body = await request.json()
        rows = body["instances"] if isinstance(body, dict) else [list(record.values()) for record in body]
        return {"predictions": booster.inplace_predict(np.array(rows)).tolist()}

    return app


def sklearn_app(model: str) -> Any:
    import fastapi
    import joblib
    import pandas as pd

    app = fastapi.FastAPI()
    pipeline = joblib.load(model)

    @app.get("/ping")
    def ping() -> dict[str, str]:
        return {}

    @app.post("/invocations")
    async def invocations(request: fastapi.Request) -> Any:
        frame = pd.DataFrame(await request.json())
        return {"predictions": pipeline.predict_proba(frame)[:, 1].tolist()}

    return app


def mlserver_folder(folder: Path, model: str, port: int) -> Path:
    """What `mlserver start` reads."""
    folder.mkdir()
    ports = {"http_port": port, "grpc_port": port + 1, "metrics_port": port + 2}
    settings = {"host": "127.0.0.1", **ports, "parallel_workers": 0, "debug": False}
    (folder / "settings.json").write_text(json.dumps(settings))
    implementation = {"name": "m", "implementation": "mlserver_xgboost.XGBoostModel", "parameters": {"uri": model}}
    (folder / "model-settings.json").write_text(json.dumps(implementation))
    return folder


if __name__ == "__main__":
    kind, port, model = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    scripts = Path(sys.executable).parent
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.path.insert(0, str(Path(__file__).parent))
    if kind in ("floor", "fastapi", "sklearn"):
        import uvicorn

        app = floor_app() if kind == "floor" else {"fastapi": fastapi_app, "sklearn": sklearn_app}[kind](model)
        uvicorn.run(app, port=port, access_log=False, lifespan="off", ws="none", log_level="critical")
    elif kind == "flask":
        os.environ["PYTHONPATH"] = str(Path(__file__).parent)
        options = f"-k gevent -w 1 --keep-alive 60 -b 127.0.0.1:{port} --log-level critical".split()
        os.execv(scripts / "gunicorn", ["gunicorn", *options, f"serving_peers:flask_app({model!r})"])
    else:
        folder = mlserver_folder(Path(model).parent / f"mlserver-{port}", model, port)
        os.execv(scripts / "mlserver", ["mlserver", "start", str(folder)])
