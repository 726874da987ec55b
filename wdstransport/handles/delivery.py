"""A session's callback thread: one callback at a time, SessionComplete exactly once and last."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from wdstransport.handles.constants import (
    TRANSPORTCLIENT_CALLBACK_ID,
    WDS_TRANSPORTCLIENT_RECEIVE_CONTENTS,
    WDS_TRANSPORTCLIENT_SESSION_COMPLETE,
    WDS_TRANSPORTCLIENT_SESSION_NEGOTIATE,
    WDS_TRANSPORTCLIENT_SESSION_START,
    WDS_TRANSPORTCLIENT_SESSION_STARTEX,
    WDSTPC_E_UNKNOWN_ERROR,
)
from wdstransport.handles.library import LOGGER, set_calling_session
from wdstransport.handles.records import TRANSPORTCLIENT_SESSION_INFO
from wdstransport.protocol.events import BlocksArrived

if TYPE_CHECKING:
    from wdstransport.handles.session import Session

__all__ = ["CallbackThread"]


class CallbackThread(threading.Thread):
    """Calls one session's callbacks: what its transfer puts into the inbox, in that order."""

    def __init__(self, session: Session) -> None:
        super().__init__(name=f"wdstci-{session.number}", daemon=True)
        self._session: Session | None = session

    def run(self) -> None:
        """Until the transfer's end, which None in the inbox is."""
        session, self._session = self._session, None
        assert session is not None
        set_calling_session(session)
        try:
            while (item := session.transfer.inbox.get()) is not None:
                if isinstance(item, BlocksArrived):
                    self._deliver(session, item)
                    # Not a name more than needed may hold on to a batch's memory.
                    del item
                    session.transfer.delivered_one()
                else:
                    self._open(session, item)
            code = session.completing(session.transfer.code)
            self._call(session, WDS_TRANSPORTCLIENT_SESSION_COMPLETE, code)
        finally:
            set_calling_session(None)
            session.completed()

    def _call(self, session: Session, which: TRANSPORTCLIENT_CALLBACK_ID, *arguments: object) -> None:
        callback = session.callbacks.get(which)
        if callback is None:
            return
        try:
            callback(session.handle, session.caller_data, *arguments)
        except BaseException:
            LOGGER.exception(
                "%s of %s (%s) raised; the session ends as a failure", which.name, session, session.settings
            )
            session.end(WDSTPC_E_UNKNOWN_ERROR)

    def _open(self, session: Session, info: TRANSPORTCLIENT_SESSION_INFO) -> None:
        if session.cancel_code is None:
            self._call(session, WDS_TRANSPORTCLIENT_SESSION_START, info.ullFileSize)
        if session.cancel_code is None:
            self._call(session, WDS_TRANSPORTCLIENT_SESSION_STARTEX, info)
        if session.cancel_code is None and WDS_TRANSPORTCLIENT_SESSION_NEGOTIATE in session.callbacks:
            key = session.begin_negotiation(info.ullFileSize)
            try:
                self._call(session, WDS_TRANSPORTCLIENT_SESSION_NEGOTIATE, info, key)
            finally:
                session.end_negotiation()
        session.transfer.opened()

    def _deliver(self, session: Session, event: BlocksArrived) -> None:
        """ReceiveContents for each block of a batch; none once the session is cancelled."""
        loans = session.transfer.loans
        batch, length = event.batch, event.block_len
        if session.cancel_code is not None:
            loans.give_back(batch)
            return
        buffers, outstanding = session.runtime.buffers, session.outstanding
        whole, loan = loans.lend(batch)
        places = ((run, place) for run in event.runs for place in range(run.rows))
        for (first_row, _, first_block), place in places:
            if session.cancel_code is not None:
                break
            start = (first_row + place) * batch.segment + event.data_offset
            offset = (first_block + place - 1) * session.transfer.block_size
            view = whole[start : start + length]
            if loan is None:
                view = memoryview(bytes(view))
                loans.copied += batch.owner is not None
            outstanding[offset] = length
            buffer = buffers.lend(view, session.number, offset)
            self._call(session, WDS_TRANSPORTCLIENT_RECEIVE_CONTENTS, view, length, offset)
            buffers.returned(buffer)
        buffer = view = None  # type: ignore[assignment]
        whole.release()
        del whole
        loans.settle(batch, loan)
