alert_config = {
    'enable_alerts': True,                        # Enable alerting
    'alert_channels': ['console', 'log'],        # Alert channels
    'severity_levels': ['warning', 'error', 'critical'], # Severity levels
    'alert_cooldown': 60.0,                       # Alert cooldown period
    'escalation_rules': {
        'critical': {'immediate': True},          # Critical alert rules
        'error': {'delay': 30.0},                 # Error alert rules
        'warning': {'delay': 300.0}               # Warning alert rules
    }
}
