"""The pipeline as a SageMaker Pipeline: its definition, its jobs, its executions."""
