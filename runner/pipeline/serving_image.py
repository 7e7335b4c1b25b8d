"""Whether a pipeline's model may need an image of one's own where it is served, as far as its notebook says.

SageMaker's image for XGBoost has no other library that scores; a deployment there is refused once the model is known.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from runner.notebook.source import Notebook, imported_names, python_source
from runner.records import Pipeline, SageMakerTargetSpec

OTHERS = {"lightgbm": "LightGBM", "sklearn": "scikit-learn"}


def outlook(pipeline: Pipeline, notebooks: Mapping[str, Notebook]) -> Iterator[str]:
    """What to write for each target that the model could not be served at."""
    step = pipeline.model.from_.partition(".")[0] if pipeline.model is not None else ""
    if step not in notebooks or pipeline.sagemaker.serving_image is not None:
        return
    names = {name for cell in notebooks[step].code for name in imported_names(python_source(cell))}
    packages = {name.partition(".")[0] for name in names}
    if "xgboost" in packages or not packages & OTHERS.keys():
        return
    library = " and ".join(OTHERS[name] for name in sorted(packages & OTHERS.keys()))
    for name, target in pipeline.targets.items():
        if isinstance(target, SageMakerTargetSpec) and target.serving_image is None:
            yield (
                f"step {step} imports {library}, and targets.{name} serves with SageMaker's image for XGBoost, which "
                f'has nothing else. For a model of {library} write serving_image = "own" in [targets.{name}].'
            )
