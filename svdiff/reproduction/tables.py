"""The paper's Table 1 with our counts in it."""

from common.tables import published_table, text_table


def size_table(costs: dict[str, dict[str, int]]) -> str:
    """Table 1 with our counts beside it. costs: per subset what subsets.cost finds on the UNet of the paper."""
    table = published_table("svdiff", "1")
    lines = [["Subset", "tensors", "numbers", "KB published", "KB as torch.save", "KB as our file"]]
    for row in table["rows"]:
        found = costs[row["subset"]]
        sizes = (f"{found[name] / 1024:.1f}" for name in ("torch_bytes", "file_bytes"))
        lines.append([row["subset"], str(found["tensors"]), f"{found['values']:,}", f"{row['values'][0]:g}", *sizes])
    doubts = "\n".join(f"- {doubt}" for doubt in table["doubts"])
    return f"{table['title']}\n({table['place']})\n\n{text_table(lines)}\n\nOn the published numbers:\n{doubts}"
