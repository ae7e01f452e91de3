"""Parts of kernel_report, bench_kernels and tune_kernels."""
