"""Amazon Web Services: the only place that imports boto3. Nothing that runs locally imports it, but for s3:// sources."""
