//! Who is there, and what peers exchange.

use super::{BACKENDS, Case, ends_badly, flat, forked, manager};
use crate::support::launch;
use ndarray::{Array0, Array1, Array2, Array3, ArrayD, IxDyn, arr0, arr1, arr2, s};
use num_complex::Complex;
use phalanx::{Backend, Error, Granularity, ParallelManager, Result, create_parallel_manager};

pub const CASES: &[Case] = cases! {
    a_fan_out_is_root_and_alone
    peers_have_the_ranks_of_their_world
    factory_knows_the_names_of_upstream
    factory_lists_known_names
    factory_refuses_what_it_cannot_make
    sync_array_is_in_place
    sync_pyobject_gives_roots
    combine_is_in_rank_order
    gather_arrays_of_any_length_and_type
    gather_arrays_into_too_little_room_is_an_error_on_all
    gather_arrays_of_other_types_is_an_error_on_all
    sum_of_scalars_vectors_and_tensors
    sum_of_lists
    sum_of_other_lengths_is_an_error_on_all
    alone_every_exchange_is_a_copy
    program_of_peers_gives_the_serial_table
};

fn a_fan_out_is_root_and_alone() {
    for backend in BACKENDS {
        let mut manager = manager(backend, 3, Granularity::PerWorker);
        let most = if backend == Backend::Serial { 1 } else { 3 };
        assert_eq!((manager.is_root_process(), manager.get_rank()), (true, 0));
        assert_eq!((manager.number_of_worker_processes(), manager.max_workers()), (1, most));
        let scattered = manager.scatter(|| Ok(()), |_: &[u8], ()| Ok(()), &[1, 2]).unwrap();
        assert_eq!(manager.number_of_worker_processes(), most.min(2), "as many as there was work for");
        manager.gather(scattered).unwrap();
    }
}

fn peers_have_the_ranks_of_their_world() {
    launch(3, |comm| {
        let rank = comm.rank();
        let mut manager = ParallelManager::with_peers(comm);
        assert_eq!((manager.get_rank(), manager.is_root_process()), (rank, rank == 0));
        manager.sync_with_peers()?;
        let scattered = manager.scatter(|| Ok(()), |_: &[u8], ()| Ok(()), &[1])?;
        assert_eq!(manager.number_of_worker_processes(), 3);
        manager.gather(scattered).map(drop)
    })
    .unwrap();
}

fn factory_knows_the_names_of_upstream() {
    for (name, granularity) in [
        ("auto", Granularity::PerWorker),
        ("Serial", Granularity::PerWorker),
        ("THREADS", Granularity::PerWorker),
        ("shared-memory", Granularity::PerWorker),
        ("ConcurrentFutures", Granularity::PerWorker),
        ("concurrent.futures", Granularity::PerWorker),
        ("MultiProcessing", Granularity::PerSample),
        ("Ray", Granularity::PerSample),
        ("RayIo", Granularity::PerSample),
    ] {
        let mut manager = create_parallel_manager(name, 2).unwrap();
        assert_eq!(manager.granularity, granularity, "{name}");
        let scattered = manager.scatter(|| Ok(()), |x: &[i32], ()| Ok(x.to_vec()), &[1, 2, 3]).unwrap();
        assert_eq!(flat(&manager.gather(scattered).unwrap()).1, [1, 2, 3], "{name}");
    }
}

fn factory_lists_known_names() {
    let error = create_parallel_manager("abacus", 2).unwrap_err().to_string();
    for name in [
        "abacus",
        "auto",
        "serial",
        "threads",
        "shared-memory",
        "concurrentfutures",
        "multiprocessing",
        "ray",
    ] {
        assert!(error.contains(name), "{error}");
    }
}

fn factory_refuses_what_it_cannot_make() {
    for name in ["MPI", "hybrid"] {
        let error = create_parallel_manager(name, 2).unwrap_err().to_string();
        assert!(error.contains(&name.to_lowercase()) && error.contains("mpirun"), "{error}");
        assert!(error.contains("shared-memory"), "{error}");
    }
    for number in [0, 1_000_000] {
        let error = create_parallel_manager("shared-memory", number).unwrap_err().to_string();
        assert!(error.contains(&format!("{number} workers")), "{error}");
    }
}

fn sync_array_is_in_place() {
    launch(3, |comm| {
        let mut manager = ParallelManager::with_peers(comm);
        let mut table = Array2::from_elem((3, 2), manager.get_rank());
        manager.sync_array_with_peers(&mut table)?;
        assert_eq!(table, Array2::<usize>::zeros((3, 2)));
        let mut column = Array2::from_elem((3, 2), manager.get_rank() + 5);
        manager.sync_array_with_peers(&mut column.column_mut(1))?;
        assert_eq!(column.column(1), arr1(&[5; 3]), "strided");
        manager.sync_array_with_peers(&mut Array1::<f64>::zeros(0))
    })
    .unwrap();
}

fn sync_pyobject_gives_roots() {
    let all = launch(3, |comm| {
        let mut manager = ParallelManager::with_peers(comm);
        let mine = manager.is_root_process().then(|| vec![("salinity".to_owned(), 35.0)]);
        manager.sync_pyobject_with_peers(mine)
    });
    assert_eq!(all.unwrap().unwrap(), vec![Some(vec![("salinity".to_owned(), 35.0)]); 3]);
}

fn combine_is_in_rank_order() {
    let all = launch(4, |comm| {
        let mut manager = ParallelManager::with_peers(comm);
        manager.combine_data_with_peers(&"x".repeat(manager.get_rank() * 100_000))
    });
    for lists in all.unwrap().unwrap() {
        assert_eq!(lists.iter().map(String::len).collect::<Vec<_>>(), [0, 100_000, 200_000, 300_000]);
    }
}

fn gather_arrays_of_any_length_and_type() {
    launch(3, |comm| {
        let mut manager = ParallelManager::with_peers(comm);
        let rank = manager.get_rank();
        let mine = Array1::from_elem(2 - rank, rank as f64);
        let mut all = Array1::from_elem(3, -1.0);
        manager.gather_arrays_to_root(&mine, (&mut all, &[2, 1, 0]))?;
        assert_eq!(all, if rank == 0 { arr1(&[0.0, 0.0, 1.0]) } else { arr1(&[-1.0; 3]) });
        let mut flags = Array1::from_elem(3, false);
        // What the others give to receive into is not used.
        manager.gather_arrays_to_root(&arr1(&[rank != 1]), (&mut flags, &[1, 1, 1]))?;
        assert_eq!(flags, if rank == 0 { arr1(&[true, false, true]) } else { arr1(&[false; 3]) });
        Ok(())
    })
    .unwrap();
}

fn gather_arrays_into_too_little_room_is_an_error_on_all() {
    for sizes in [[2, 2, 2], [2, 2, 1], [3, 1, 1]] {
        ends_badly(3, |comm| {
            let mut manager = ParallelManager::with_peers(comm);
            let mut all = Array1::from_elem(5, -1.0);
            let error = manager.gather_arrays_to_root(&arr1(&[1.0, 1.0]), (&mut all, &sizes)).unwrap_err();
            assert!(matches!(error, Error::BadArgument { .. }), "{error}");
            assert_eq!(all, Array1::from_elem(5, -1.0), "no output was written");
            Ok(())
        });
    }
}

fn gather_arrays_of_other_types_is_an_error_on_all() {
    ends_badly(3, |comm| {
        let mut manager = ParallelManager::with_peers(comm);
        let mut all = Array1::from_elem(3, -1.0);
        let gathered = match manager.get_rank() {
            0 => manager.gather_arrays_to_root(&arr1(&[1.0f64]), (&mut all, &[1, 1, 1])),
            1 => manager.gather_arrays_to_root(&arr1(&[1.0f32]), (&mut [], &[])),
            _ => manager.gather_arrays_to_root(&arr1(&[1i64]), (&mut [], &[])),
        };
        let error = gathered.unwrap_err();
        assert!(matches!(error, Error::Mismatch { .. } | Error::Ended { .. }), "{error}");
        assert_eq!(all, arr1(&[-1.0; 3]), "nothing is reinterpreted");
        Ok(())
    });
}

fn sum_of_scalars_vectors_and_tensors() {
    launch(3, |comm| {
        let mut manager = ParallelManager::with_peers(comm);
        let x = manager.get_rank() as f64 + 1.0;
        let (mut number, mut one) = (Array0::zeros(()), Array1::zeros(1));
        manager.sum_values_and_sync(&arr0(x), &mut number)?;
        manager.sum_values_and_sync(&arr0(x), &mut one)?;
        assert_eq!((number[()], one[0]), (6.0, 6.0));
        let mut vector = Array1::zeros(3);
        manager.sum_values_and_sync(&arr1(&[x, 10.0 * x, 0.0]), &mut vector)?;
        assert_eq!(vector, arr1(&[6.0, 60.0, 0.0]));
        let mut matrix = Array2::<i32>::zeros((2, 2));
        manager.sum_values_and_sync(&arr2(&[[1, 2], [3, 4]]).reversed_axes(), &mut matrix)?;
        assert_eq!(matrix, arr2(&[[3, 9], [6, 12]]));
        let mut tensor = ArrayD::<u8>::zeros(IxDyn(&[2, 3, 4]));
        manager.sum_values_and_sync(&Array3::<u8>::ones((2, 3, 4)), &mut tensor)?;
        assert!(tensor.iter().all(|&sum| sum == 3));
        let mut complex = Array1::zeros(1);
        manager.sum_values_and_sync(&arr1(&[Complex::new(x, -x)]), &mut complex)?;
        assert_eq!(complex[0], Complex::new(6.0, -6.0));
        manager.sum_values_and_sync(&Array1::<f64>::zeros(0), &mut Array1::zeros(0))
    })
    .unwrap();
}

fn sum_of_lists() {
    launch(3, |comm| {
        let mut manager = ParallelManager::with_peers(comm);
        let x = manager.get_rank() as i64;
        let mut sums = [Array1::zeros(2), Array1::zeros(0), Array1::zeros(1)];
        manager.sum_lists_and_sync(&[arr1(&[x, 1]), arr1(&[]), arr1(&[5])], &mut sums)?;
        assert_eq!(sums, [arr1(&[3, 3]), arr1(&[]), arr1(&[15])]);
        let mut none: [Array1<i64>; 0] = [];
        manager.sum_lists_and_sync(&none.clone(), &mut none)
    })
    .unwrap();
}

fn sum_of_other_lengths_is_an_error_on_all() {
    for long in 0..2 {
        ends_badly(3, |comm| {
            let mut manager = ParallelManager::with_peers(comm);
            let send = Array1::<f64>::ones(if manager.get_rank() == 1 { 3 } else { 2 });
            let mut recv = Array1::from_elem(if long == 0 { 2 } else { send.len() }, -1.0);
            let error = manager.sum_values_and_sync(&send, &mut recv).unwrap_err();
            assert!(matches!(error, Error::BadArgument { .. }), "{error}");
            assert!(recv.iter().all(|&x| x == -1.0));
            Ok(())
        });
    }
}

fn alone_every_exchange_is_a_copy() {
    let mut manager = forked(4);
    manager.sync_with_peers().unwrap();
    let mut data = arr1(&[1, 2]);
    manager.sync_array_with_peers(&mut data).unwrap();
    assert_eq!(data, arr1(&[1, 2]));
    assert_eq!(manager.sync_pyobject_with_peers(Some("x".to_owned())).unwrap(), Some("x".to_owned()));
    assert_eq!(manager.combine_data_with_peers(&7).unwrap(), [7]);
    let (mut all, mut short) = (Array1::zeros(2), Array1::zeros(1));
    manager.gather_arrays_to_root(&data, (&mut all, &[2])).unwrap();
    assert_eq!(all, data);
    assert!(manager.gather_arrays_to_root(&data, (&mut short, &[2])).is_err());
    let mut sum = Array1::zeros(1);
    manager.sum_values_and_sync(&arr0(3), &mut sum).unwrap();
    assert_eq!(sum[0], 3);
    assert!(manager.sum_values_and_sync(&data, &mut sum).is_err());
    manager.sum_lists_and_sync(&[arr1(&[4])], &mut [&mut sum].map(|sum| sum.view_mut())).unwrap();
    assert_eq!(sum[0], 4);
}

/// parameter_sweep's RecursiveParameterSweep: SPMD with the manager's collectives, until enough samples are solved.
fn program_of_peers_gives_the_serial_table() {
    let solve = |x: f64| if (x * 7.0).sin() > 0.0 { Some(x * x) } else { None };
    let program = |manager: &mut ParallelManager<'_, '_>| -> Result<Option<Array1<f64>>> {
        let (mut solved, mut first) = (Array1::<f64>::zeros(0), 0);
        while solved.len() < 40 {
            let mut samples = Array1::zeros(16);
            if manager.is_root_process() {
                samples = Array1::from_shape_fn(16, |i| (first + i) as f64 * 0.1);
            }
            manager.sync_array_with_peers(&mut samples)?;
            first += 16;
            let (size, rank) = (manager.number_of_worker_processes(), manager.get_rank());
            let (start, end) = (16 * rank / size, 16 * (rank + 1) / size);
            let mine: Array1<f64> = samples.slice(s![start..end]).iter().filter_map(|&x| solve(x)).collect();
            let mut total = Array1::zeros(1);
            manager.sum_values_and_sync(&arr0(mine.len() as i64), &mut total)?;
            let sizes = manager.combine_data_with_peers(&mine.len())?;
            assert_eq!(sizes.iter().sum::<usize>() as i64, total[0]);
            let mut all = Array1::zeros(total[0] as usize);
            manager.gather_arrays_to_root(&mine, (&mut all, &sizes))?;
            manager.sync_array_with_peers(&mut all)?;
            solved = solved.into_iter().chain(all).collect();
        }
        Ok(manager.is_root_process().then_some(solved))
    };
    let mut serial = create_parallel_manager("serial", 1).unwrap();
    let expected = program(&mut serial).unwrap();
    for ranks in [1, 2, 3, 5] {
        let tables = launch(ranks, |comm| {
            let table = program(&mut ParallelManager::with_peers(comm))?;
            Ok(table.map(|table| table.to_vec()))
        });
        assert_eq!(
            tables.unwrap().unwrap()[0],
            expected.clone().map(|table| table.to_vec()),
            "{ranks} ranks"
        );
    }
}
