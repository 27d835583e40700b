"""Multi-query associative recall (MQAR): language models with memory layers that recall the pairs of their prompt."""
