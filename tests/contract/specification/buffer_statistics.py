buffer_stats = {
    'total_entries': 1500,                        # Total stored entries
    'entries_per_layer': {4: 500, 6: 1000},      # Per-layer entries
    'memory_size_mb': 45.2,                       # Memory usage in MB
    'utilization_rate': 0.75,                     # Buffer utilization
    'eviction_count': 50,                         # Total evictions
    'eviction_rate': 0.03                         # Eviction frequency
}
