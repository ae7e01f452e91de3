"""The GPUs that can be simulated: one row each, vendor figures unless a comment says otherwise."""

from dataclasses import dataclass

GB = 10**9
MiB = 2**20


@dataclass(frozen=True, slots=True)
class Gpu:
    """What a data sheet says of a GPU.

    Attributes:
        granule_sms, remainder_sms: how green contexts cut it: num_sms = k * granule + remainder; decode
            lanes are made of granules, and the remainder belongs to prefill.
        peak_flops: dense bf16 tensor-core rate of the whole GPU, FLOP/s.
        hbm_bytes_per_s: peak bandwidth of device memory.
        l2_port_bytes_per_s: what one SM can draw from L2, the hard ceiling of a small lane.
        l2_bytes, memory_bytes: capacities.
        link_bytes_per_s: to a second GPU, one direction.
    """

    name: str
    label: str
    num_sms: int
    granule_sms: int
    remainder_sms: int
    peak_flops: float
    hbm_bytes_per_s: float
    l2_port_bytes_per_s: float
    l2_bytes: int
    memory_bytes: int
    link_bytes_per_s: float

    @property
    def num_granules(self) -> int:
        return (self.num_sms - self.remainder_sms) // self.granule_sms


# L2 port: 64 bytes per clock and SM on all three (Volta and A100 whitepapers). The clock is the one at
# which the vendor's peak rate holds: peak / (SMs * FLOP per SM and clock) = 1.83 GHz on Hopper with 4096,
# 1.41 GHz on Ampere with 2048. Measured decode curves agree with it: see tests/unit/test_sim_cost.py.
_HOPPER_PORT = 64 * 1.83e9
_AMPERE_PORT = 64 * 1.41e9

GPUS: dict[str, Gpu] = {
    gpu.name: gpu
    for gpu in (
        Gpu(
            name="h200",
            label="NVIDIA H200 SXM",
            num_sms=132,
            # 15 groups of 8 SMs and 12 left over is what an H100 SXM5 answers to
            # cuDevSmResourceSplitByCount(min 8); no public H200 figure.
            granule_sms=8,
            remainder_sms=12,
            peak_flops=989.4e12,  # data sheet: 1,979 TFLOPS with sparsity
            hbm_bytes_per_s=4.8e12,  # data sheet
            l2_port_bytes_per_s=_HOPPER_PORT,
            l2_bytes=60 * MiB,  # read from a device (cudaDeviceProp.l2CacheSize)
            memory_bytes=141 * GB,  # data sheet
            link_bytes_per_s=450e9,  # NVLink 4: 900 GB/s both directions together, data sheet
        ),
        Gpu(
            name="h100",
            label="NVIDIA H100 SXM 80 GB",
            num_sms=132,
            granule_sms=8,  # as measured on an H100 SXM5, see above
            remainder_sms=12,
            peak_flops=989.4e12,  # data sheet: 1,979 TFLOPS with sparsity
            hbm_bytes_per_s=3.35e12,  # data sheet
            l2_port_bytes_per_s=_HOPPER_PORT,
            l2_bytes=50 * MiB,  # H100 architecture whitepaper
            memory_bytes=80 * GB,  # data sheet
            link_bytes_per_s=450e9,  # data sheet
        ),
        Gpu(
            name="a100",
            label="NVIDIA A100 SXM 80 GB",
            num_sms=108,
            # compute capability 8.x: at least 4 SMs, in steps of 2 (CUDA programming guide, green
            # contexts); 4 divides 108, so nothing is left over
            granule_sms=4,
            remainder_sms=0,
            peak_flops=312e12,  # data sheet
            hbm_bytes_per_s=2.039e12,  # data sheet
            l2_port_bytes_per_s=_AMPERE_PORT,
            l2_bytes=40 * MiB,  # A100 architecture whitepaper
            memory_bytes=80 * GB,  # data sheet
            link_bytes_per_s=300e9,  # NVLink 3: 600 GB/s both directions together, data sheet
        ),
    )
}
