/// Attention with the operands of its products rounded to bfloat16; the formulas are those of `Attention`.
///
/// Scores, their softmax, and all sums are float32. Keys and values are packed once for a head. Where a product sums over keys
/// they lie in runs of 64, so that a tile of queries reads those that it sees.

import CKernels
import LinearAlgebra

/// One head of one sequence: where its rows lie, `width` floats from row to row for queries, `keyWidth` for keys.
struct HalfHead {
    let size: Int
    let width: Int
    let keyWidth: Int
    let scale: Float
    let isCausal: Bool
    /// Queries, and the tokens before them that keys and values hold too.
    let count: Int
    let past: Int
    let queries: UnsafePointer<Float>
    let keys: UnsafePointer<Float>
    let values: UnsafePointer<Float>

    /// Keys of a run.
    private static let run = 64

    private var path: Int32 { KernelPath.active.rawValue }
    private var total: Int { past + count }
    /// Pairs of values of a row.
    private var pairs: Int { (size + 1) / 2 }
    /// Floats from row to row of a tile of scores: whole slivers.
    private var lead: Int { Self.slivers(total) }
    /// Halves from row to row of a tile over keys; of queries and of a tile turned round.
    private var keyStride: Int { (total + 63) / 64 * 64 + 32 }
    private var rowStride: Int { 2 * pairs }
    private static let turnedStride = Attention.tileRows

    private static func slivers(_ columns: Int) -> Int {
        let sliver = Int(TRIBUTARY_BF16_SLIVER)
        return (columns + sliver - 1) / sliver * sliver
    }

    /// Bytes of scratch memory of one thread.
    static func scratchByteCount(keys: Int, size: Int) -> Int {
        let (rows, size) = (Attention.tileRows, (size + 15) / 16 * 16)
        return keys * (2 * 3 * size + rows * (4 * 2 + 2 * 2))
    }

    /// What a tile of queries sees: all keys up to the last query's, in whole runs, and the columns of scores that are computed.
    private func seen(from start: Int, rows: Int) -> (first: Int, keys: Int, columns: Int) {
        let visible = isCausal ? past + start + rows : total
        let keys = min(total, (visible + Self.run - 1) / Self.run * Self.run)
        return (isCausal ? past + start + 1 : total, keys, min(total, Self.slivers(keys)))
    }

    /// Keys or values as the right operand of a product over their `size` values.
    private func packRows(_ rows: UnsafePointer<Float>, _ scratch: Scratch) -> UnsafeMutablePointer<UInt32> {
        let packed = scratch.memory(of: UInt32.self, count: tributary_bf16_packed_size(total, size))
        packFloats(rows, stride: keyWidth, transposed: false, columns: 0..<total, over: 0..<size, into: packed)
        return packed
    }

    /// The same as the right operand of a product over keys, run by run.
    private func packRuns(_ rows: UnsafePointer<Float>, _ scratch: Scratch) -> UnsafeMutablePointer<UInt32> {
        let part = tributary_bf16_packed_size(size, Self.run)
        let packed = scratch.memory(of: UInt32.self, count: part * ((total + Self.run - 1) / Self.run))
        for (index, start) in stride(from: 0, to: total, by: Self.run).enumerated() {
            packFloats(
                rows, stride: keyWidth, transposed: true, columns: 0..<size, over: start..<min(total, start + Self.run),
                into: packed + index * part)
        }
        return packed
    }

    /// scores `[rows, columns]` = rounded rows times packed rows^T.
    private func scores(
        _ halves: UnsafePointer<UInt16>, rows: Int, _ packed: UnsafePointer<UInt32>, columns: Int,
        into scores: UnsafeMutablePointer<Float>
    ) {
        var segment = tributary_bf16_segment(a: halves, a_stride: rowStride, b: packed, pairs: pairs)
        tributary_bf16_multiply(path, &segment, 1, rows, columns, nil, 0, scores, lead)
    }

    /// result `[rows, size]` = tile `[rows, keys]`, rounded, times packed runs.
    private func weigh(
        _ tile: UnsafePointer<Float>, rows: Int, keys: Int, _ packed: UnsafePointer<UInt32>,
        into result: UnsafeMutablePointer<Float>
    ) {
        let halves = Scratch.fourth.memory(of: UInt16.self, count: rows * keyStride)
        tributary_bf16_round(path, tile, lead, rows, keys, 1, halves, keyStride)
        let count = (keys + Self.run - 1) / Self.run
        let part = tributary_bf16_packed_size(size, Self.run)
        let segments = Scratch.segments.memory(of: tributary_bf16_segment.self, count: count)
        for index in 0..<count {
            segments[index] = tributary_bf16_segment(
                a: halves + index * Self.run, a_stride: keyStride, b: packed + index * part,
                pairs: (min(Self.run, total - index * Self.run) + 1) / 2)
        }
        tributary_bf16_multiply(path, segments, count, rows, size, nil, 0, result, width)
    }

    /// sum `[keys, size]` (+)= tile^T `[keys, rows]`, rounded, times rows `[rows, size]`, rounded.
    private func gather(
        _ tile: UnsafePointer<Float>, rows: Int, keys: Int, _ values: UnsafePointer<Float>, adds: Bool,
        into sum: UnsafeMutablePointer<Float>
    ) {
        let turned = Scratch.fifth.memory(of: UInt16.self, count: keys * Self.turnedStride)
        tributary_bf16_round_transposed(path, tile, lead, rows, keys, 1, turned, Self.turnedStride)
        let packed = Scratch.packed.memory(of: UInt32.self, count: tributary_bf16_packed_size(size, rows))
        packFloats(values, stride: width, transposed: true, columns: 0..<size, over: 0..<rows, into: packed)
        var segment = tributary_bf16_segment(a: turned, a_stride: Self.turnedStride, b: packed, pairs: (rows + 1) / 2)
        tributary_bf16_multiply(path, &segment, 1, keys, size, adds ? UnsafePointer(sum) : nil, width, sum, width)
    }

    /// - Parameters:
    ///   - output: of the head's first query
    ///   - normalizers: of the head's queries, or nil
    func forward(into output: UnsafeMutablePointer<Float>, normalizers: UnsafeMutablePointer<Float>?) {
        let packedKeys = packRows(keys, .first)
        let packedValues = packRuns(values, .second)
        let tile = Scratch.scores.floats(Attention.tileRows * lead)
        let halves = Scratch.sixth.memory(of: UInt16.self, count: Attention.tileRows * rowStride)
        for start in stride(from: 0, to: count, by: Attention.tileRows) {
            let rows = min(Attention.tileRows, count - start)
            let seen = seen(from: start, rows: rows)
            tributary_bf16_round(path, queries + start * width, width, rows, size, 1, halves, rowStride)
            scores(halves, rows: rows, packedKeys, columns: seen.columns, into: tile)
            tributary_causal_softmax(path, tile, lead, rows, seen.keys, seen.first, scale, normalizers.map { $0 + start })
            weigh(tile, rows: rows, keys: seen.keys, packedValues, into: output + start * width)
        }
    }

    /// Gradients of a head without earlier tokens; the parameters are those of `Attention.backward`, of the head's first token.
    /// A row's sum of P dP is that of the rounded products, so that what their rounding has in common falls out of dS.
    func backward(
        normalizers: UnsafePointer<Float>, outputGradient: UnsafePointer<Float>,
        queryGradient: UnsafeMutablePointer<Float>, keyGradient: UnsafeMutablePointer<Float>,
        valueGradient: UnsafeMutablePointer<Float>
    ) {
        let packedKeys = packRows(keys, .first)
        let packedValues = packRows(values, .second)
        let keyRuns = packRuns(keys, .third)
        let tileSize = Attention.tileRows * lead
        let p = Scratch.scores.floats(2 * tileSize)
        let ds = p + tileSize
        let halves = Scratch.sixth.memory(of: UInt16.self, count: Attention.tileRows * rowStride)
        // From the last tile to the first: the last sees every key, so that its product sets what others add to.
        let tiles = (count + Attention.tileRows - 1) / Attention.tileRows
        for index in (0..<tiles).reversed() {
            let start = index * Attention.tileRows
            let rows = min(Attention.tileRows, count - start)
            let seen = seen(from: start, rows: rows)
            let (query, gradient) = (queries + start * width, outputGradient + start * width)
            tributary_bf16_round(path, query, width, rows, size, 1, halves, rowStride)
            scores(halves, rows: rows, packedKeys, columns: seen.columns, into: p)
            tributary_bf16_round(path, gradient, width, rows, size, 1, halves, rowStride)
            scores(halves, rows: rows, packedValues, columns: seen.columns, into: ds)
            tributary_causal_softmax_backward(
                path, p, ds, lead, rows, seen.keys, seen.first, scale, normalizers + start, nil)
            let adds = index < tiles - 1
            gather(p, rows: rows, keys: seen.keys, gradient, adds: adds, into: valueGradient)
            gather(ds, rows: rows, keys: seen.keys, query, adds: adds, into: keyGradient)
            weigh(ds, rows: rows, keys: seen.keys, keyRuns, into: queryGradient + start * width)
        }
    }
}
