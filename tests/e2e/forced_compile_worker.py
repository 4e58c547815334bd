"""A CPU worker on which vLLM's own compile path runs, for the tests of its cache."""

from vllm.compilation.passes.utility import fix_functionalization
from vllm.v1.worker.cpu_worker import CPUWorker

# The pass names operators that exist on CUDA only; Inductor does its work here.
fix_functionalization.FixFunctionalizationPass.__call__ = lambda *_: None


class ForcedCompileWorker(CPUWorker):  # type: ignore[misc]  # vLLM is untyped here
    """Only its module's import matters: it patches this process."""
