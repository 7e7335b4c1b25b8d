"""The actions of SageMaker about processing jobs and their logs."""

from __future__ import annotations

from typing import Any

from .calls import Call
from .errors import ServiceError
from .gateway import Action
from .jobs import Jobs
from .listing import sort, turn_page, was_made_between
from .transfer import LOG_GROUP


class ProcessingActions:
    def __init__(self, jobs: Jobs) -> None:
        self.jobs = jobs

    def actions(self) -> dict[tuple[str, str], Action]:
        return {
            ("sagemaker", "CreateProcessingJob"): self.create,
            ("sagemaker", "DescribeProcessingJob"): self.describe,
            ("sagemaker", "StopProcessingJob"): self.stop,
            ("sagemaker", "DeleteProcessingJob"): self.delete,
            ("sagemaker", "ListProcessingJobs"): self.list_jobs,
            ("logs", "DescribeLogStreams"): self.hide_logs,
            ("logs", "GetLogEvents"): self.hide_logs,
            ("logs", "FilterLogEvents"): self.hide_logs,
        }

    def create(self, call: Call, environ: dict[str, Any]) -> dict[str, Any]:
        return {"ProcessingJobArn": self.jobs.create(call.parameters).arn}

    def describe(self, call: Call, environ: dict[str, Any]) -> dict[str, Any]:
        return self.jobs.get(call.parameters["ProcessingJobName"]).describe()

    def stop(self, call: Call, environ: dict[str, Any]) -> dict[str, Any]:
        self.jobs.stop(call.parameters["ProcessingJobName"])
        return {}

    def delete(self, call: Call, environ: dict[str, Any]) -> dict[str, Any]:
        self.jobs.delete(call.parameters["ProcessingJobName"])
        return {}

    def list_jobs(self, call: Call, environ: dict[str, Any]) -> dict[str, Any]:
        wanted = call.parameters
        found = [
            job.summarize()
            for job in self.jobs.list_all()
            if wanted.get("NameContains", "") in job.name
            and wanted.get("StatusEquals", job.status) == job.status
            and was_made_between(wanted, job.created)
        ]
        keys = {"": "CreationTime", "Name": "ProcessingJobName", "Status": "ProcessingJobStatus"}
        return turn_page(sort(found, wanted, keys), wanted, "ProcessingJobSummaries")

    def hide_logs(self, call: Call, environ: dict[str, Any]) -> None:
        """Streams that are held back do not exist yet; everything else is moto's to answer."""
        wanted = call.parameters
        if wanted.get("logGroupName") != LOG_GROUP:
            return
        prefix = wanted.get("logStreamNamePrefix") or wanted.get("logStreamName") or ""
        if self.jobs.hides_logs(prefix):
            raise ServiceError("ResourceNotFoundException", "The specified log stream does not exist.")
