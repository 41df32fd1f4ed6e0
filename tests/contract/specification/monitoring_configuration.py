monitoring_config = {
    'enable_real_time': True,                     # Enable real-time monitoring
    'enable_profiling': False,                    # Enable detailed profiling
    'metric_collection_interval': 1.0,           # Metric collection interval
    'health_check_interval': 5.0,                # Health check interval
    'max_history_size': 1000,                    # Maximum history entries
    'alert_thresholds': {
        'high_latency': 0.1,                      # High latency threshold
        'low_efficiency': 0.7,                    # Low efficiency threshold
        'high_error_rate': 0.05                   # High error rate threshold
    }
}
