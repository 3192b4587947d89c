"""Celery's configuration, in Celery's names: https://docs.celeryq.dev/en/stable/userguide/configuration.html."""

from __future__ import annotations

from kombu.entity import Queue

from workers.broker import PATIENCE, broker
from workers.celery import settings

broker_url, broker_transport_options = broker(settings.redis_url)
broker_connection_timeout = PATIENCE
broker_connection_retry_on_startup = True
broker_connection_max_retries = None
task_publish_retry = False

accept_content = ["json"]
task_serializer = "json"
result_backend = None
task_ignore_result = True
enable_utc = True
timezone = "UTC"

# `live` and `bulk` are lanes of the ledger, `api` is for what calls Stripe: the live lane never waits for Stripe.
# Nothing is acknowledged: a message carries nothing that could be lost, and kombu's consumer never takes another one
# after an acknowledgement that Redis was too slow for.
task_queues = [Queue(name, no_ack=True) for name in ("live", "bulk", "api")]  # type: ignore[no-untyped-call]
task_default_queue = "live"
task_create_missing_queues = False

# A worker is one process of the pool `solo`: the only one that survives a restart of Redis, and the fastest.
worker_pool = "solo"
worker_concurrency = 1
worker_prefetch_multiplier = 1
worker_enable_remote_control = False
worker_hijack_root_logger = True
worker_redirect_stdouts = False
worker_log_format = "%(asctime)s %(levelname)s %(process)d %(name)s: %(message)s"
worker_task_log_format = worker_log_format
worker_cancel_long_running_tasks_on_connection_loss = True  # of tasks acknowledged late: we have none

# What waited an hour for a worker has been overtaken by what came after it.
_EXPIRES = {"expires": 3600}
# Behind work that takes longer, these need not wait in numbers.
_OF_API = {"expires": 300, "queue": "api"}
beat_schedule = {
    "sweep": {"task": "sweep", "schedule": float(settings.sweep_seconds), "options": _EXPIRES},
    "reconcile": {"task": "reconcile", "schedule": 300.0, "options": _OF_API},
    "watchdog": {"task": "watchdog", "schedule": 300.0, "options": _OF_API},
    "sync_catalog": {"task": "sync_catalog", "schedule": 300.0, "options": _OF_API},
    "backfill": {"task": "backfill", "schedule": 60.0, "options": _OF_API},
    "hydrate": {"task": "hydrate", "schedule": 60.0, "options": _OF_API},
    "decide_due": {"task": "decide_due", "schedule": 20.0, "options": _EXPIRES},
}
