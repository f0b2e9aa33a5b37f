"""The CUDA path without a GPU: ``make test-cuda-stand-in``.

vLLM's build for CUDA, with its torch, Triton and FlashAttention 3, on a machine whose driver
libraries are stand-ins: vLLM takes it for one with an H100. Its Python is the real one, from the
configuration to Model Runner V2, the asynchronous scheduler and the FlashAttention wrapper. Tensors
lie in the CPU's memory; Triton kernels run in Triton's interpreter. Fakes (``machine``, ``graphs``,
``worker``) take the place of what only a device can do: FlashAttention 3's kernel, writing the KV
cache, CUDA graphs, streams. Nothing here says how fast anything is, or that a kernel is right.
"""
