"""What the image's own package does between gunicorn and a model's script, in words of its own.

https://github.com/aws/sagemaker-xgboost-container/blob/master/src/sagemaker_xgboost_container/serving.py
"""

import importlib

from sagemaker_containers.beta.framework import env, transformer, worker

FUNCTIONS = ("model_fn", "input_fn", "predict_fn", "output_fn", "transform_fn")
app = None


def main(environ, start_response):
    """Each worker process loads the script and its model with the first request, a /ping."""
    global app
    if app is None:
        name = env.ServingEnv().module_name
        script = importlib.import_module(name)
        given = {one: getattr(script, one) for one in FUNCTIONS if hasattr(script, one)}
        made = transformer.Transformer(**given)
        made.initialize()
        app = worker.Worker(transform_fn=made.transform, module_name=name)
    return app(environ, start_response)
