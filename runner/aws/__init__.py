"""Amazon Web Services: only here boto3 is imported. Nothing that runs locally imports it, except for s3:// sources."""
