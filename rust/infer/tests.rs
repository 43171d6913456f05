//! Every instruction set against the scalar one, bit for bit, and that one against float64.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

/// Numbers in (-1, 1) that repeat for a seed.
fn numbers(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..n)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// What `compute` gives by the scalar set, after every other one gave the same bits.
fn same_on_all_sets(n: usize, compute: impl Fn(InstructionSet, &mut [f32])) -> Vec<f32> {
    let mut reference = vec![0.0; n];
    compute(InstructionSet::Scalar, &mut reference);
    for set in InstructionSet::available() {
        let mut out = vec![0.0; n];
        compute(set, &mut out);
        assert_eq!(bits(&out), bits(&reference), "{set:?}");
    }
    reference
}

#[test]
fn products_are_the_same_bits_on_every_set_and_near_float64() {
    for (n_rows, n_outputs, n_inputs) in
        [(1, 1, 1), (5, 7, 16), (9, 6, 35), (70, 9, 64), (3, 4, 100)]
    {
        let (x, w) = (
            numbers(n_rows * n_inputs, 1),
            numbers(n_outputs * n_inputs, 2),
        );
        let bias = numbers(n_outputs, 3);
        let (integers, scales) = quantize_rows(&w, n_inputs);
        for is_quantized in [false, true] {
            let weights = if is_quantized {
                Weights::Int8(&integers, &scales)
            } else {
                Weights::Float(&w)
            };
            let out = same_on_all_sets(n_rows * n_outputs, |set, out| {
                linear(set, &x, weights, Some(&bias), n_inputs, out, 1).expect("sizes fit");
            });
            for (i, y) in out.iter().enumerate() {
                let (row, output) = (i / n_outputs, i % n_outputs);
                let sum: f64 = (0..n_inputs)
                    .map(|k| {
                        let at = output * n_inputs + k;
                        let weight = if is_quantized {
                            f64::from(integers[at]) * f64::from(scales[output])
                        } else {
                            f64::from(w[at])
                        };
                        f64::from(x[row * n_inputs + k]) * weight
                    })
                    .sum();
                assert!((sum + f64::from(bias[output]) - f64::from(*y)).abs() < 1e-5);
            }
        }
    }
}

#[test]
fn a_row_is_the_same_bits_in_any_batch_and_with_any_threads() {
    let (n_outputs, n_inputs) = (301, 500);
    let (x, w) = (numbers(70 * n_inputs, 1), numbers(n_outputs * n_inputs, 2));
    let set = InstructionSet::detect();
    let product = |x: &[f32], n_threads| {
        let mut out = vec![0.0; x.len() / n_inputs * n_outputs];
        linear(
            set,
            x,
            Weights::Float(&w),
            None,
            n_inputs,
            &mut out,
            n_threads,
        )
        .expect("sizes fit");
        bits(&out)
    };
    let whole = product(&x, 1);
    for n_threads in [2, 3, 7] {
        assert_eq!(product(&x, n_threads), whole);
    }
    for (first, n) in [(0, 1), (69, 1), (5, 3), (3, 66)] {
        let part = product(&x[first * n_inputs..(first + n) * n_inputs], 2);
        assert_eq!(part, whole[first * n_outputs..(first + n) * n_outputs]);
    }
}

#[test]
fn integers_lie_within_half_a_step() {
    let mut w = numbers(6 * 50, 4);
    w[50..100].fill(0.0);
    let (integers, scales) = quantize_rows(&w, 50);
    for (i, w) in w.iter().enumerate() {
        let back = f32::from(integers[i]) * scales[i / 50];
        assert!((back - w).abs() <= scales[i / 50] * 0.5001);
    }
    assert!(integers.chunks(50).enumerate().all(|(row, x)| {
        x.iter().map(|x| x.unsigned_abs()).max() == Some(if row == 1 { 0 } else { 127 })
    }));
}

#[test]
fn what_is_no_number_in_a_row_of_weights_reaches_its_factor() {
    for bad in [f32::NAN, f32::INFINITY] {
        let (integers, scales) = quantize_rows(&[1.0, bad, 2.0, 0.0, -1.0, 0.5], 3);
        assert!(!scales[0].is_finite() && scales[1].is_finite());
        let mut out = [0.0; 2];
        let weights = Weights::Int8(&integers, &scales);
        linear(
            InstructionSet::Scalar,
            &[1.0; 3],
            weights,
            None,
            3,
            &mut out,
            1,
        )
        .expect("fits");
        assert!(out[0].is_nan() && out[1].is_finite());
    }
}

#[test]
fn norms_and_activations_are_the_same_bits_on_every_set_and_near_float64() {
    for n in [1, 15, 16, 33, 64] {
        let x: Vec<f32> = numbers(3 * n, 5).iter().map(|x| 9.0 * x).collect();
        let gains = numbers(n, 6);
        let out = same_on_all_sets(3 * n, |set, out| {
            rms_norm(set, &x, Some(&gains), n, 1e-5, out).expect("sizes fit");
        });
        for (row, out) in x.chunks(n).zip(out.chunks(n)) {
            let mean: f64 = row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / n as f64;
            for ((x, y), gain) in row.iter().zip(out).zip(&gains) {
                let expected = f64::from(*x) / (mean + 1e-5).sqrt() * f64::from(*gain);
                assert!((expected - f64::from(*y)).abs() < 1e-5);
            }
        }
        for (activation, expected) in [
            (
                Activation::Silu,
                (|x| x / (1.0 + (-x).exp())) as fn(f64) -> f64,
            ),
            (Activation::Tanh, f64::tanh),
        ] {
            let out = same_on_all_sets(3 * n, |set, out| {
                activate(set, activation, &x, None, out).expect("sizes fit");
            });
            for (x, y) in x.iter().zip(out) {
                assert!((expected(f64::from(*x)) - f64::from(y)).abs() < 1e-5);
            }
        }
    }
}

#[test]
fn gelu_has_known_values() {
    let x = [0.0, 1.0, -1.0, 3.0, -3.0, 10.0, -30.0];
    let expected = [
        0.0,
        0.841_344_7,
        -0.158_655_25,
        2.995_95,
        -0.004_049_694,
        10.0,
        0.0,
    ];
    let mut out = [1.0; 7];
    activate(InstructionSet::Scalar, Activation::Gelu, &x, None, &mut out).expect("sizes fit");
    for (y, expected) in out.iter().zip(expected) {
        assert!((y - expected).abs() < 1e-6, "{y} {expected}");
    }
}

#[test]
fn attention_is_the_same_bits_on_every_set_and_near_float64() {
    for (n_heads, n_kv_heads, d_head, window) in [
        (2, 2, 64, None),
        (9, 3, 64, Some(5)),
        (7, 1, 10, None),
        (4, 2, 70, Some(1)),
        (5, 1, 16, None),
    ] {
        let heads = Heads {
            n_heads,
            n_kv_heads,
            d_head,
        };
        let (block_size, n_blocks) = (3, 20);
        let positions = [0, 1, 20, 7, 8];
        let tables = [vec![4], vec![1, 2, 3, 5, 6, 7, 9], vec![19, 11, 0]];
        let plan = Plan::new(&positions, &[2, 1, 2], &tables, block_size, n_blocks).expect("fits");
        let stored = n_blocks * block_size * n_kv_heads * d_head;
        let q = numbers(5 * n_heads * d_head, 7);
        let (k, v) = (numbers(stored, 8), numbers(stored, 9));
        let out = same_on_all_sets(q.len(), |set, out| {
            for n_threads in [3, 1] {
                attend(set, &plan, heads, (&q, &k, &v), window, 0.3, out, n_threads).expect("fits");
            }
        });
        for (i, y) in out.iter().enumerate() {
            let (token, head, d) = (i / d_head / n_heads, i / d_head % n_heads, i % d_head);
            let (table, end) = (
                &tables[[0, 0, 1, 2, 2][token]],
                positions[token] as usize + 1,
            );
            let at = |position: usize| {
                let slot =
                    table[position / block_size] as usize * block_size + position % block_size;
                (slot * n_kv_heads + head / (n_heads / n_kv_heads)) * d_head
            };
            let q = &q[(token * n_heads + head) * d_head..][..d_head];
            let (mut sum, mut total) = (0.0, 0.0);
            for position in window.map_or(0, |window| end.saturating_sub(window))..end {
                let k = &k[at(position)..][..d_head];
                let dot: f64 = q
                    .iter()
                    .zip(k)
                    .map(|(a, b)| f64::from(*a) * f64::from(*b))
                    .sum();
                let weight = (0.3 * dot).exp();
                total += weight;
                sum += weight * f64::from(v[at(position) + d]);
            }
            assert!((sum / total - f64::from(*y)).abs() < 1e-5);
        }
    }
}

#[test]
fn what_is_no_number_reaches_the_output() {
    let plan = Plan::new(&[1], &[1], &[vec![0]], 2, 1).expect("fits");
    let heads = Heads {
        n_heads: 1,
        n_kv_heads: 1,
        d_head: 2,
    };
    for set in InstructionSet::available() {
        for bad in [f32::NAN, f32::INFINITY] {
            let (keys, mut out) = ([1.0, 2.0, bad, 0.0], [0.0; 2]);
            attend(
                set,
                &plan,
                heads,
                (&[1.0, 1.0], &keys, &keys),
                None,
                1.0,
                &mut out,
                1,
            )
            .expect("fits");
            assert!(out[0].is_nan());
        }
        let mut out = [0.0];
        activate(set, Activation::Silu, &[f32::NAN], None, &mut out).expect("fits");
        assert!(out[0].is_nan());
    }
}

#[test]
fn workers_do_each_part_once_for_many_callers() {
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for n_parts in (1..9).cycle().take(300) {
                    let counts: Vec<_> = (0..n_parts).map(|_| AtomicUsize::new(0)).collect();
                    threads::run(n_parts, &|part| {
                        counts[part].fetch_add(1, Ordering::Relaxed);
                    });
                    assert!(counts.iter().all(|n| n.load(Ordering::Relaxed) == 1));
                }
            });
        }
    });
}

#[test]
fn a_panic_in_a_part_reaches_the_caller_and_the_next_job_runs() {
    for bad in 0..3 {
        let outcome = std::panic::catch_unwind(|| {
            threads::run(3, &|part| assert_ne!(part, bad, "on purpose"));
        });
        assert!(outcome.is_err());
    }
    let n = AtomicUsize::new(0);
    threads::run(3, &|_| {
        n.fetch_add(1, Ordering::Relaxed);
    });
    assert_eq!(n.into_inner(), 3);
}

#[test]
fn sizes_that_do_not_fit_are_refused() {
    let set = InstructionSet::Scalar;
    let mut out = [0.0; 4];
    assert!(
        linear(
            set,
            &[1.0; 4],
            Weights::Float(&[1.0; 6]),
            None,
            3,
            &mut out,
            1
        )
        .is_err()
    );
    assert!(
        linear(
            set,
            &[1.0; 3],
            Weights::Float(&[1.0; 6]),
            None,
            3,
            &mut out,
            1
        )
        .is_err()
    );
    assert!(
        linear(
            set,
            &[1.0; 3],
            Weights::Int8(&[1; 12], &[1.0; 3]),
            None,
            3,
            &mut out,
            1
        )
        .is_err()
    );
    assert!(linear(set, &[], Weights::Float(&[]), None, 0, &mut out, 1).is_err());
    assert!(rotate(&[1.0; 4], &[1], (&[1.0; 2], &[1.0; 2]), 2, &mut out).is_err());
    assert!(rotate(&[1.0; 4], &[-1], (&[1.0; 2], &[1.0; 2]), 2, &mut out).is_err());
    assert!(Plan::new(&[0], &[1], &[vec![3]], 2, 3).is_err());
    assert!(Plan::new(&[6], &[1], &[vec![0, 1, 2]], 2, 3).is_err());
    assert!(Plan::new(&[0], &[usize::MAX], &[vec![0]], 2, 3).is_err());
    assert!(Plan::new(&[0], &[usize::MAX, 2], &[vec![0], vec![0]], 2, 3).is_err());
    let plan = Plan::new(&[0], &[1], &[vec![0]], 1, 1).expect("fits");
    let heads = Heads {
        n_heads: 1,
        n_kv_heads: 1,
        d_head: 1,
    };
    let one = &[1.0];
    assert!(
        attend(
            set,
            &plan,
            heads,
            (one, one, one),
            Some(0),
            1.0,
            &mut [0.0],
            1
        )
        .is_err()
    );
}
