"""What is done with ended runs: comparing, verifying, reproducing, debugging, packing, removing."""
