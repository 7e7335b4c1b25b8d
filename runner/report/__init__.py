"""Pages that a person reads: one for a run, one for each executed notebook. Offline, without scripts, inert."""
