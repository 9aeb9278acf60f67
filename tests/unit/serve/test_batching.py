import asyncio
import threading
from collections.abc import Sequence

import pytest

from icdsel.serve.batching import Batcher


def run(work, jobs, most=8):
    async def main():
        batcher = Batcher(work, most, "test")
        try:
            return await asyncio.gather(*map(batcher.result, jobs), return_exceptions=True)
        finally:
            batcher.close()

    return asyncio.run(main())


def test_each_job_gets_its_own_result_in_batches_of_those_that_wait():
    sizes = []

    def work(jobs: Sequence[int]) -> list[int]:
        sizes.append(len(jobs))
        return [job * job for job in jobs]

    assert run(work, range(20), most=8) == [n * n for n in range(20)]
    assert max(sizes) <= 8 and sum(sizes) == 20 and len(sizes) <= 4


def test_heavy_jobs_are_worked_on_in_smaller_batches_and_in_order():
    batches, going = [], threading.Event()

    def work(jobs: Sequence[int]) -> list[int]:
        going.wait(5)
        batches.append(list(jobs))
        return list(jobs)

    async def main() -> list[int]:
        batcher = Batcher(work, 3, "test", weight=lambda job: job, heaviest=10)
        asked = [asyncio.create_task(batcher.result(n)) for n in (1, 4, 6, 1, 30, 1, 2, 3, 4)]
        await asyncio.sleep(0.05)
        going.set()
        results = await asyncio.gather(*asked)
        batcher.close()
        return results

    assert asyncio.run(main()) == [1, 4, 6, 1, 30, 1, 2, 3, 4]
    assert batches == [[1, 4], [6, 1], [30], [1, 2, 3], [4]]


def test_a_job_that_fails_makes_no_other_fail():
    def work(jobs: Sequence[int]) -> list[int]:
        if 3 in jobs:
            raise ValueError("three")
        return list(jobs)

    results = run(work, range(6))
    assert [r for r in results if isinstance(r, int)] == [0, 1, 2, 4, 5]
    assert isinstance(results[3], ValueError)


def test_a_single_job_does_not_wait_for_others():
    async def main() -> float:
        batcher = Batcher(list, 8, "test")
        started = asyncio.get_running_loop().time()
        assert await batcher.result(1) == 1
        batcher.close()
        return asyncio.get_running_loop().time() - started

    assert asyncio.run(main()) < 0.5


def test_a_job_whose_waiting_task_was_cancelled_is_left_out():
    worked_on, going = [], threading.Event()

    def work(jobs: Sequence[int]) -> list[int]:
        going.wait(5)
        worked_on.extend(jobs)
        return list(jobs)

    async def main() -> None:
        batcher = Batcher(work, 1, "test")
        first, second = (asyncio.create_task(batcher.result(n)) for n in (1, 2))
        await asyncio.sleep(0.05)
        second.cancel()
        await asyncio.sleep(0)
        going.set()
        assert await first == 1
        with pytest.raises(asyncio.CancelledError):
            await second
        batcher.close()

    asyncio.run(main())
    assert worked_on == [1]


def test_jobs_that_wait_are_cancelled_when_it_closes():
    going = threading.Event()

    async def main() -> None:
        batcher = Batcher(lambda jobs: [going.wait(5)] * len(jobs), 1, "test")
        _, second = tasks = [asyncio.create_task(batcher.result(n)) for n in (1, 2)]
        await asyncio.sleep(0.05)
        batcher.close()
        with pytest.raises(asyncio.CancelledError):
            await second
        going.set()
        await asyncio.wait(tasks)

    asyncio.run(main())
