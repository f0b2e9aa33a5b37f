"""Files and batches: OpenAI's API for work that nobody waits for.

A tenant uploads a file of requests, one JSON object a line, and starts a batch of it. The requests
run through the same pipeline as all others, but only where online requests leave room, and their
answers become a file. All of it is kept in one folder, so that a gateway which restarts goes on
where it was.
"""
