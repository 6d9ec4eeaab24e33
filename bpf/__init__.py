"""Programs and maps in the kernel: bpf(2), a loader of compiled objects, attaching to interfaces."""
