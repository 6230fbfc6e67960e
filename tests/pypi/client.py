"""What a program does that brings the Python package of SPDK along, which is of a later version: client.py SOCKET FILE"""

import sys

from spdk.rpc.client import JSONRPCClient, JSONRPCException

MIB = 1024 * 1024


def refused(client, method, params, words):
    try:
        client.call(method, params)
    except JSONRPCException as error:
        assert words in error.message, f"{method} {params}: {error.message}"
        return
    raise AssertionError(f"{method} {params} was not refused")


def size_of(client, name):
    bdev = client.call("bdev_get_bdevs", {"name": name})[0]
    return bdev["num_blocks"] * bdev["block_size"]


def main(socket, file):
    with JSONRPCClient(socket) as client:
        assert "v20.07" in client.call("spdk_get_version")["version"]

        # By the parameters of this version …
        client.call("bdev_aio_create", {"name": "aio0", "filename": file, "block_size": 512})
        client.call("bdev_lvol_create_lvstore", {"bdev_name": "aio0", "lvs_name": "lvs", "cluster_sz": MIB})
        client.call("bdev_lvol_create", {"lvs_name": "lvs", "lvol_name": "bytes", "size": 4 * MIB})
        client.call("bdev_lvol_resize", {"name": "lvs/bytes", "size": 6 * MIB})
        assert size_of(client, "lvs/bytes") == 6 * MIB

        # … and by those of later ones.
        client.call("bdev_lvol_create", {"lvs_name": "lvs", "lvol_name": "mib", "size_in_mib": 4, "thin_provision": True})
        assert size_of(client, "lvs/mib") == 4 * MIB
        client.call("bdev_lvol_resize", {"name": "lvs/mib", "size_in_mib": 8})
        assert size_of(client, "lvs/mib") == 8 * MIB
        # The package's own way of calling, too.
        client.bdev_lvol_resize(name="lvs/mib", size_in_mib=10)
        assert size_of(client, "lvs/mib") == 10 * MIB

        new = {"lvs_name": "lvs", "lvol_name": "none"}
        same = {"name": "lvs/mib"}
        for method, params in (("bdev_lvol_create", new), ("bdev_lvol_resize", same)):
            refused(client, method, params, "say how large")
            for sizes in ({"size": MIB, "size_in_mib": 1}, {"size_in_mib": 2**45}, {"size_in_mib": -1}):
                refused(client, method, {**params, **sizes}, "decode")
        assert size_of(client, "lvs/mib") == 10 * MIB

        # What a refused delete says arrives whole.
        client.call("bdev_lvol_snapshot", {"lvol_name": "lvs/mib", "snapshot_name": "snap"})
        client.call("bdev_lvol_clone", {"snapshot_name": "lvs/snap", "clone_name": "clone"})
        refused(client, "bdev_lvol_delete", {"name": "lvs/snap"}, "lvs/snap")
        for name in ("clone", "mib", "snap", "bytes"):
            client.call("bdev_lvol_delete", {"name": f"lvs/{name}"})
        client.call("bdev_lvol_delete_lvstore", {"lvs_name": "lvs"})
        client.call("bdev_aio_delete", {"name": "aio0"})


main(*sys.argv[1:])
