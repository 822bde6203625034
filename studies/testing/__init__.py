"""What every executor promises, as tests for pytest: an executor of your own is held to it in a few lines.

    from studies.testing.contract import ExecutorContract
    from my_package.my_executor import MyExecutor

    class TestMyExecutor(ExecutorContract):
        @classmethod
        def make_executor(cls, *, run=None, trial_timeout=float("inf")):
            return MyExecutor(run=run, trial_timeout=trial_timeout)

`run` is what a worker does with a job in the place of `studies.worker.trial.run_job`: a function of a module of this package,
which the workers can import. The tests draw their own images and need neither network nor data, but pytest.
"""
