"""One client's bytes on the event socket: E: lines in, whole reports and complaints out."""

from vhost_user_input.description import Description
from vhost_user_input.evemu import BYTE_ORDER_MARK, parse_event
from vhost_user_input.reports import Reports

MAX_LINE = 1024  # bytes; an E: line with a comment needs less than 100

# Other lines that `evemu-record` writes. The device is described already, so they are ignored.
_IGNORED = ("#", "N:", "I:", "P:", "B:", "A:", "L:", "S:")


class ParsedLines:
    """The reports that some bytes contained, and the errors in them."""

    def __init__(self) -> None:
        self.reports = bytearray()
        self.errors: list[str] = []


class EventLines:
    """Reads E: lines for one device. A bad line gives an error and is skipped."""

    def __init__(self, description: Description) -> None:
        self._description = description
        self._reports = Reports(description)
        self._rest = b""
        self._skipping = False
        self._begun = False

    @property
    def incomplete(self) -> int:
        """How many events wait for their SYN_REPORT."""
        return self._reports.incomplete

    def feed(self, data: bytes) -> ParsedLines:
        """Takes bytes as they come, cut anywhere."""
        parsed = ParsedLines()
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._take(line, parsed)
        if len(self._rest) > MAX_LINE:
            self._take(self._rest, parsed)
            self._skipping, self._rest = True, b""
        return parsed

    def finish(self) -> ParsedLines:
        """Takes the end of the stream: the last line may lack its end of line."""
        return self.feed(b"\n")

    def _take(self, line: bytes, parsed: ParsedLines) -> None:
        if self._skipping:
            self._skipping = False  # the end of an overlong line, whose error was given already
            return
        try:
            self._take_line(line, parsed)
        except ValueError as error:
            parsed.errors.append(str(error))

    def _take_line(self, line: bytes, parsed: ParsedLines) -> None:
        if len(line) > MAX_LINE:
            raise ValueError(f"a line of more than {MAX_LINE} bytes")
        text = line.decode("utf-8", "replace")
        if not self._begun:
            self._begun, text = True, text.removeprefix(BYTE_ORDER_MARK)
        text = text.strip()
        if not text or text.startswith(_IGNORED):
            return
        _time, kind, code, value = parse_event(text)
        self._description.check(kind, code, value)
        parsed.reports += self._reports.add(kind, code, value)
