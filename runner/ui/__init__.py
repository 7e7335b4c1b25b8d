"""Web pages for whoever decides, and for whoever would rather look than type: runs, models and targets as they are now.

A decision made here is the same call as a command's, so it leaves the same event.
"""
