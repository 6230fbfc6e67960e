#!/usr/bin/env bash
# The stand-in itself, as one more of SPDK's scripts: it writes and reads what it is told, to the device that it is told,
# and fails when that is not so.

testdir=$(readlink -f "$(dirname "$0")")
rootdir=$(readlink -f "$testdir/../..")
source "$rootdir/test/common/autotest_common.sh"
source "$rootdir/test/lvol/common.sh"
source "$rootdir/test/bdev/nbd_common.sh"

# What is written by one way is there by the others, and nowhere else.
function test_data_arrive() {
	run_fio_test /dev/nbd0 1048576 1048576 write 0xcc
	{
		head -c 1048576 /dev/zero
		head -c 1048576 /dev/zero | tr '\0' '\314'
		head -c 6291456 /dev/zero
	} > expected
	cmp /dev/nbd0 expected
	run_fio_test /dev/nbd0 0 1048576 read 0x00
	run_fio_test /dev/nbd0 1048576 1048576 read 0xcc
	run_fio_test /dev/nbd0 2097152 6291456 read 0x00
	run_fio_test /dev/nbd1 0 $((8 << 20)) read 0x00
	NOT run_fio_test /dev/nbd0 $((1048576 - 4096)) 1048576 read 0xcc
	NOT run_fio_test /dev/nbd0 1048576 $((1048576 + 4096)) read 0xcc

	# As fio does it: whole blocks, and not beyond the end.
	run_fio_test /dev/nbd0 1048576 $((1048576 + 4095)) read 0xcc
	run_fio_test /dev/nbd0 2097152 8388608 read 0x00

	head -c 3145728 /dev/urandom > random
	dd if=random of=/dev/nbd1 oflag=direct bs=1048576 seek=2 count=3
	dd if=/dev/nbd1 of=back iflag=direct bs=1048576 skip=2 count=3
	cmp random back
	run_fio_test /dev/nbd1 0 2097152 read 0x00
	run_fio_test /dev/nbd1 5242880 3145728 read 0x00
}

# One byte of 8 MiB differs, in the midst of a block that fio wrote.
function test_differences_are_seen() {
	run_fio_test /dev/nbd0 0 $((8 << 20)) write 0xcc
	run_fio_test /dev/nbd1 0 $((8 << 20)) write 0xcc
	cmp /dev/nbd0 /dev/nbd1
	NOT run_fio_test /dev/nbd0 0 $((8 << 20)) read 0xcd

	dd if=/dev/nbd1 of=block bs=4096 skip=777 count=1
	printf '\315' | dd of=block bs=1 seek=1234 conv=notrunc
	dd if=block of=/dev/nbd1 oflag=direct bs=4096 seek=777 count=1
	NOT cmp /dev/nbd0 /dev/nbd1
	NOT run_fio_test /dev/nbd1 0 $((8 << 20)) read 0xcc
	run_fio_test /dev/nbd1 0 $((777 * 4096)) read 0xcc
	run_fio_test /dev/nbd1 $((778 * 4096)) $(((8 << 20) - 778 * 4096)) read 0xcc
}

function test_errors_are_seen() {
	# Beyond the end, and where there is no device.
	NOT dd if=/dev/zero of=/dev/nbd0 oflag=direct bs=1048576 seek=8 count=1
	NOT dd if=/dev/zero of=/dev/nbd2 oflag=direct bs=1048576 count=1
	NOT run_fio_test /dev/nbd2 0 1048576 read 0x00
	NOT cmp /dev/nbd0 /dev/nbd2

	# What the device itself refuses.
	rpc_cmd bdev_error_create small0
	nbd_start_disks "$DEFAULT_RPC_ADDR" EE_small0 /dev/nbd2
	rpc_cmd bdev_error_inject_error EE_small0 write failure -n 1
	NOT run_fio_test /dev/nbd2 0 1048576 write 0xcc
	run_fio_test /dev/nbd2 0 1048576 write 0xcc
	rpc_cmd bdev_error_inject_error EE_small0 read failure -n 1
	NOT run_fio_test /dev/nbd2 0 1048576 read 0xcc
	rpc_cmd bdev_error_inject_error EE_small0 read failure -n 1
	NOT cmp /dev/nbd0 /dev/nbd2
	run_fio_test /dev/nbd2 0 1048576 read 0xcc
	nbd_stop_disks "$DEFAULT_RPC_ADDR" /dev/nbd2
}

# Nobody goes on in the middle of what another one has begun.
function test_a_killed_program_leaves_no_device() {
	nbd_start_disks "$DEFAULT_RPC_ADDR" lent0 /dev/nbd2
	fio --name=killed --filename=/dev/nbd2 --offset=0 --size=1048576 --rw=write --time_based --runtime=60 \
		--do_verify=1 --verify=pattern --verify_pattern=0xcc &
	local fio_pid=$!
	sleep 1
	kill -9 $fio_pid
	NOT wait $fio_pid
	waitfornbd_exit nbd2
	[ "$(nbd_get_count "$DEFAULT_RPC_ADDR")" = 2 ]
	NOT run_fio_test /dev/nbd2 0 1048576 read 0xcc
}

# A device that is removed is gone from NBD, too.
function test_a_removed_device_is_gone() {
	nbd_start_disks "$DEFAULT_RPC_ADDR" lent0 /dev/nbd2
	[ "$(nbd_get_count "$DEFAULT_RPC_ADDR")" = 3 ]
	rpc_cmd bdev_malloc_delete lent0
	waitfornbd_exit nbd2
	[ "$(nbd_get_count "$DEFAULT_RPC_ADDR")" = 2 ]
	NOT run_fio_test /dev/nbd2 0 1048576 read 0x00
}

"$SPDK_BIN_DIR/spdk_tgt" &
spdk_pid=$!
trap 'killprocess "$spdk_pid"; exit 1' SIGINT SIGTERM EXIT
waitforlisten "$spdk_pid"
rpc_cmd bdev_malloc_create -b one0 8 512
rpc_cmd bdev_malloc_create -b other0 8 4096
rpc_cmd bdev_malloc_create -b small0 1 512
rpc_cmd bdev_malloc_create -b lent0 1 512
nbd_start_disks "$DEFAULT_RPC_ADDR" "one0 other0" "/dev/nbd0 /dev/nbd1"

run_test "test_data_arrive" test_data_arrive
run_test "test_differences_are_seen" test_differences_are_seen
run_test "test_errors_are_seen" test_errors_are_seen
run_test "test_a_killed_program_leaves_no_device" test_a_killed_program_leaves_no_device
run_test "test_a_removed_device_is_gone" test_a_removed_device_is_gone

nbd_stop_disks "$DEFAULT_RPC_ADDR" "/dev/nbd0 /dev/nbd1"
[ "$(nbd_get_count "$DEFAULT_RPC_ADDR")" = 0 ]
trap - SIGINT SIGTERM EXIT
killprocess "$spdk_pid"
