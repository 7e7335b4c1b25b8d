"""Reading raw records and scoring them: imports nothing of ours, and goes into an endpoint's container as it is."""
