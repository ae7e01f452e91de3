"""The public `openai` package for Node against our server. SEMIPD_NODE_MODULES names the folder in which
`npm install openai` has been run."""

import asyncio
import os
import shutil
from pathlib import Path

import pytest
from support.daemon import running
from support.fake_model import fake_model, fake_settings

SCRIPT = Path(__file__).parent / "node" / "openai_client.cjs"
LIMIT_S = 60.0


def _why_not() -> str:
    folder = os.environ.get("SEMIPD_NODE_MODULES", "")
    if shutil.which("node") is None:
        return "node is not installed"
    if not folder:
        return "SEMIPD_NODE_MODULES is not set; it names a folder where `npm install openai` has been run"
    if not (Path(folder) / "node_modules" / "openai").is_dir():
        return f"SEMIPD_NODE_MODULES={folder} holds no node_modules/openai"
    return ""


@pytest.mark.skipif(bool(_why_not()), reason=_why_not())
async def test_openai_for_node(tmp_path: Path) -> None:
    model = fake_model(tmp_path)
    async with running(tmp_path, model, fake=fake_settings(model)) as daemon:
        process = await asyncio.create_subprocess_exec(
            "node",
            str(SCRIPT),
            f"{daemon.url}/v1",
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(LIMIT_S):
                said, complained = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        assert (process.returncode, said.decode().strip()) == (0, "ok"), complained.decode()
        await daemon.engine_says(lambda status: status["requests"]["decoding"] == 0)
        assert daemon.services.table.totals["cancelled"] == 2
        assert len(daemon.services.table) == 0
