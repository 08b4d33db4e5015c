from .collect import collect_from_server
from .settings import ServerSettings

__all__ = ["ServerSettings", "collect_from_server"]
