"""One notebook: a step folder with job.json in it is executed, and result.json comes out."""
