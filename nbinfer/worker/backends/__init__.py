"""One file per engine library, each with a class ``Backend``; nothing else imports engines.

A backend is small::

    class Backend:
        slots = 4                 # how many threads call generate() at once
        batch = 1                 # how many requests one call is given at most
        clock = time.monotonic    # optional: stamps of its own
        methods = {}              # optional: extra calls by name

        def pick(self, waiting): ...  # optional: which of a run's rows make its next batch
        def scope(self) -> dict: ...  # optional: names that %%engine_exec gives to a cell
        def rest(self): ...  # optional: the main thread has computed (a cell), and stops

        def load(self, model, stage) -> dict: ...
        def generate(self, requests, emit, cancelled) -> None: ...
        def close(self) -> None: ...

``load`` takes what the engine class made of ``ModelParams``, may call ``stage(text)``, and
returns a report (``library``, ``version``, and what is worth keeping of the run's facts).
It sets ``slots``. What is under ``"model"`` joins the model's own facts.

``generate`` answers the requests it is given through ``emit`` (see
``nbinfer.worker.scheduler.Emit``) and asks ``cancelled(request)`` as often as the library
lets it. An exception fails the rows that have no answer yet and nothing else.

Memory is not a backend's business: the host measures the process tree from outside.
"""
