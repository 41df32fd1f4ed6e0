metrics = {
    'capture_efficiency': 0.95,                   # Capture success rate
    'storage_efficiency': 0.90,                   # Storage success rate
    'reconstruction_quality': 0.85,               # Reconstruction quality
    'memory_utilization': 0.75,                   # Buffer utilization
    'cache_hit_rate': 0.80                        # Cache efficiency
}
