"""The actions of SageMaker about processing jobs, their tags and their logs."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from .calls import Call
from .errors import ServiceError, refuse
from .gateway import Action
from .jobs import Jobs
from .transfer import LOG_GROUP


class ProcessingActions:
    def __init__(self, jobs: Jobs) -> None:
        self.jobs = jobs

    def actions(self) -> dict[tuple[str, str], Action]:
        return {
            ("sagemaker", "CreateProcessingJob"): self.create,
            ("sagemaker", "DescribeProcessingJob"): self.describe,
            ("sagemaker", "StopProcessingJob"): self.stop,
            ("sagemaker", "ListProcessingJobs"): self.list_jobs,
            ("sagemaker", "ListTags"): self.list_tags,
            ("sagemaker", "AddTags"): self.add_tags,
            ("sagemaker", "DeleteTags"): self.delete_tags,
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

    def list_jobs(self, call: Call, environ: dict[str, Any]) -> dict[str, Any]:
        wanted = call.parameters
        found = [
            job
            for job in self.jobs.list_all()
            if wanted.get("NameContains", "") in job.name
            and wanted.get("StatusEquals", job.status) == job.status
            and to_epoch(wanted.get("CreationTimeAfter"), 0.0) <= job.created
            and job.created <= to_epoch(wanted.get("CreationTimeBefore"), float("inf"))
        ]
        keys = {"Name": lambda job: job.name, "Status": lambda job: job.status}
        found.sort(key=keys.get(wanted.get("SortBy", ""), lambda job: job.created))
        if wanted.get("SortOrder", "Descending") == "Descending":
            found.reverse()
        return turn_page([job.summarize() for job in found], wanted, "ProcessingJobSummaries")

    def _tags(self, call: Call) -> list[dict[str, str]] | None:
        arn = call.parameters["ResourceArn"]
        if ":processing-job/" not in arn:
            return None
        for job in self.jobs.list_all():
            if job.arn == arn:
                tags: list[dict[str, str]] = job.request.setdefault("Tags", [])
                return tags
        raise refuse(f"Could not find resource {arn}")

    def list_tags(self, call: Call, environ: dict[str, Any]) -> dict[str, Any] | None:
        tags = self._tags(call)
        return None if tags is None else {"Tags": tags}

    def add_tags(self, call: Call, environ: dict[str, Any]) -> dict[str, Any] | None:
        tags = self._tags(call)
        if tags is None:
            return None
        new = {tag["Key"]: tag for tag in (*tags, *call.parameters["Tags"])}
        tags[:] = new.values()
        return {"Tags": tags}

    def delete_tags(self, call: Call, environ: dict[str, Any]) -> dict[str, Any] | None:
        tags = self._tags(call)
        if tags is None:
            return None
        tags[:] = [tag for tag in tags if tag["Key"] not in call.parameters["TagKeys"]]
        return {}

    def hide_logs(self, call: Call, environ: dict[str, Any]) -> None:
        """Streams that are held back do not exist yet; everything else is moto's to answer."""
        wanted = call.parameters
        if wanted.get("logGroupName") != LOG_GROUP:
            return
        prefix = wanted.get("logStreamNamePrefix") or wanted.get("logStreamName") or ""
        if self.jobs.hides_logs(prefix):
            raise ServiceError("ResourceNotFoundException", "The specified log stream does not exist.")


def to_epoch(value: Any, default: float) -> float:
    if value is None:
        return default
    return float(value) if isinstance(value, int | float) else datetime.fromisoformat(value).timestamp()


def turn_page(items: list[dict[str, Any]], wanted: dict[str, Any], name: str) -> dict[str, Any]:
    """One page of a listing; its token is where the next one begins."""
    begin, most = int(wanted.get("NextToken") or 0), int(wanted.get("MaxResults") or 100)
    page: dict[str, Any] = {name: items[begin : begin + most]}
    if begin + most < len(items):
        page["NextToken"] = str(begin + most)
    return page
