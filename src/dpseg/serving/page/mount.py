"""Puts the page onto the API's application: theme, limits, token, and how it ends."""

from __future__ import annotations

import hashlib
import hmac
import os
from typing import Any

from fastapi import FastAPI
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dpseg.serving.service import Service

SECONDS_KEPT = 3600
"""So long a visitor's references and last result, and uploaded files, are kept."""

VISITORS = 200
"""So many visitors' references and results at most are kept; those who were away for longest make room."""

_CLEAN_EVERY = 600
_BASE64 = 1.4  # pictures within JSON are a third larger
_GRADIO = "/gradio_api/"


def mount_page(app: FastAPI) -> FastAPI:
    """Returns an application of `create_app` with the page at "/"; routes of the API stay as they are.

    `app.state.end_streams()` ends the connections that open pages hold, without which a server cannot stop.
    """
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    import gradio as gr

    from dpseg.serving.page.events import Events
    from dpseg.serving.page.layout import TITLE, asset, lay_out

    service: Service = app.state.service
    settings = service.settings

    def inside(_: object = None) -> int:  # Gradio passes what the page sent
        return service.door.count

    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(_CLEAN_EVERY, SECONDS_KEPT)) as page:
        parts = lay_out(settings, service.refines, SECONDS_KEPT, inside)
        Events(parts, service).connect()
    page.state_session_capacity = VISITORS
    app.add_middleware(SizeLimit, limit=int(settings.max_body * _BASE64))
    gr.mount_gradio_app(
        app,
        page,
        path="/",
        theme=_theme(),
        css=asset("page.css"),
        head='<link rel="icon" href="data:,">',
        footer_links=[],
        run_history=False,
        show_error=False,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        max_file_size=settings.max_body,
        auth=None if settings.token is None else _allowed(settings.token),
        auth_message="The password is the server's token; any user name will do.",
    )
    app.state.end_streams = app.routes[-1].app.stop_event.set  # type: ignore[attr-defined]
    return app


def _theme() -> Any:
    """Returns a theme whose fonts are the visitor's own: nothing is fetched from elsewhere."""
    import gradio as gr

    theme = gr.themes.Default(
        primary_hue="blue",
        secondary_hue="blue",
        neutral_hue="slate",
        font=("system-ui", "sans-serif"),
        font_mono=("ui-monospace", "monospace"),
    )
    return theme.set(block_info_text_color="*neutral_600", body_text_color_subdued="*neutral_500")


def _allowed(token: str) -> Any:
    """Returns what checks the password of the page's login."""

    def check(_: str, password: str) -> bool:
        return hmac.compare_digest(*(hashlib.sha256(text.encode()).digest() for text in (password, token)))

    return check


class SizeLimit:
    """Middleware that reads no more than so many bytes of a request to the page."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self.app, self.limit = app, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, up to the limit."""
        if scope["type"] != "http" or not scope["path"].startswith(_GRADIO):
            await self.app(scope, receive, send)
            return
        read = 0

        async def limited() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            return message if read <= self.limit else {"type": "http.disconnect"}

        await self.app(scope, limited, send)
