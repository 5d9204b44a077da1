"""A check of what both formats of rings have to keep."""

from functools import update_wrapper

from vhostd.conformance.check import Observation
from vhostd.conformance.trial import Trial
from vhostd.conformance.verdict import Failed
from vhostd.errors import DeviceError, FrontendError, GuestError
from vhostd.virtio.vocabulary import Feature


class EachFormat:
    """Observes a clause with split rings, and once more with packed ones where they are offered.

    It has the name, the module and the docstring of the function that it is made of.
    """

    def __init__(self, observe: Observation) -> None:
        self._observe = observe
        update_wrapper(self, observe)

    async def __call__(self, trial: Trial) -> None:
        await self._observe(trial)
        subject = trial.subject
        if not subject.has(Feature.RING_PACKED) or (subject.is_one_shot and subject.program is None):
            return
        await trial.close()
        if subject.is_one_shot:
            await subject.settle()
        async with Trial(subject, packed=True) as packed:
            try:
                await self._observe(packed)
            except (Failed, FrontendError, DeviceError, GuestError, ConnectionError) as error:
                raise Failed(f"with a packed ring: {error}") from None
            except TimeoutError:
                raise Failed("with a packed ring: it did not answer in time") from None
