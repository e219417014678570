/// Attention of grouped heads, causal or over whole sequences, a tile of queries at a time: forward and backward.
///
/// For one head of one sequence, with queries Q, keys K, values V `[S, d]` and c = 1 / sqrt(d):
///
///     P = softmax(c Q K^T)              O  = P V
///     dV = P^T dO    dP = dO V^T        dS = c P (dP - rowsum(dO O))    dQ = dS K    dK = dS^T Q
///
/// A causal model's P is zero for keys behind the query. Only a tile `[64, S]` of P exists at a time; backward computes it again
/// from each row's log of its sum (Dao et al. 2022, arXiv:2205.14135, appendix B).

import CKernels
import LinearAlgebra

struct Attention {
    let headCount: Int
    let keyValueHeadCount: Int
    let headSize: Int
    /// Whether a query sees only keys up to its own place.
    var isCausal = true
    /// Type of the products' operands; those of few keys are float32 anyway.
    var compute = ComputeType.float32

    /// Queries of a tile.
    static let tileRows = 64
    /// Keys from which on rounding and packing cost less than products in bfloat16 gain.
    static let keysInHalves = 64

    var queryWidth: Int { headCount * headSize }
    var keyWidth: Int { keyValueHeadCount * headSize }
    private var group: Int { headCount / keyValueHeadCount }
    private var scale: Float { 1 / Float(headSize).squareRoot() }

    /// Floats from row to row of a tile that has room for `keys` scores: whole vectors.
    private static func stride(_ keys: Int) -> Int { (keys + 15) / 16 * 16 }

    /// A head of one sequence for products in bfloat16; nil where they are float32.
    private func halfHead(
        _ head: Int, _ range: Range<Int>, past: Int, _ queries: UnsafePointer<Float>, _ keys: UnsafePointer<Float>,
        _ values: UnsafePointer<Float>
    ) -> HalfHead? {
        guard compute == .bfloat16, past + range.count >= Self.keysInHalves else { return nil }
        let place = range.lowerBound * keyWidth + head / group * headSize
        return HalfHead(
            size: headSize, width: queryWidth, keyWidth: keyWidth, scale: scale, isCausal: isCausal, count: range.count,
            past: past, queries: queries + range.lowerBound * queryWidth + head * headSize, keys: keys + place,
            values: values + place)
    }

    /// Bytes of scratch memory of one thread.
    func scratchByteCount(keys: Int) -> Int {
        compute == .bfloat16
            ? HalfHead.scratchByteCount(keys: keys, size: headSize) : 4 * 2 * Self.tileRows * keys
    }

    /// O of every sequence and head.
    ///
    /// - Parameters:
    ///   - queries: `[tokens, headCount headSize]`, rotated
    ///   - keys, values: `[tokens, keyValueHeadCount headSize]`; of a sequence, its `past` earlier tokens come first
    ///   - sequences: token ranges of the queries
    ///   - past: tokens before each sequence's first query that keys and values hold too; 0 in training
    ///   - output: `[tokens, headCount headSize]`
    ///   - normalizers: `[headCount, tokens]`, the log of each softmax's sum; nil if backward does not follow
    func forward(
        queries: UnsafePointer<Float>, keys: UnsafePointer<Float>, values: UnsafePointer<Float>, tokens: Int,
        sequences: [Range<Int>], past: Int = 0, output: UnsafeMutablePointer<Float>, normalizers: UnsafeMutablePointer<Float>?
    ) {
        let path = KernelPath.active.rawValue
        let d = headSize
        Parallel.forEach(count: sequences.count * headCount) { task in
            let range = sequences[task / headCount]
            let head = task % headCount
            if let half = halfHead(head, range, past: past, queries, keys, values) {
                half.forward(
                    into: output + range.lowerBound * queryWidth + head * d,
                    normalizers: normalizers.map { $0 + head * tokens + range.lowerBound })
                return
            }
            let column = head / group * d
            let k = keys + range.lowerBound * keyWidth + column
            let v = values + range.lowerBound * keyWidth + column
            var start = 0
            while start < range.count {
                let rows = min(Self.tileRows, range.count - start)
                let visible = isCausal ? past + start + rows : past + range.count
                let lead = Self.stride(visible)
                let scores = Scratch.scores.floats(rows * lead)
                let q = queries + (range.lowerBound + start) * queryWidth + head * d
                gemm(transposeB: true, m: rows, n: visible, k: d, q, lda: queryWidth, k, ldb: keyWidth, scores, ldc: lead)
                tributary_causal_softmax(
                    path, scores, lead, rows, visible, isCausal ? past + start + 1 : visible, scale,
                    normalizers.map { $0 + head * tokens + range.lowerBound + start })
                gemm(
                    m: rows, n: d, k: visible, scores, lda: lead, v, ldb: keyWidth,
                    output + (range.lowerBound + start) * queryWidth + head * d, ldc: queryWidth)
                start += rows
            }
        }
    }

    /// O of a few tokens behind `past` others of one sequence: the queries that share a head of keys read it together.
    func forwardFew(
        queries: UnsafePointer<Float>, keys: UnsafePointer<Float>, values: UnsafePointer<Float>, tokens: Int, past: Int,
        output: UnsafeMutablePointer<Float>
    ) {
        let path = KernelPath.active.rawValue
        let d = headSize
        Parallel.forEach(count: keyValueHeadCount) { head in
            for token in 0..<tokens {
                let visible = past + token + 1
                let lead = Self.stride(visible)
                let scores = Scratch.scores.floats(group * lead)
                let place = token * queryWidth + head * group * d
                tributary_gemv_f32(path, keys + head * d, keyWidth, visible, d, queries + place, d, group, scores, lead)
                for query in 0..<group {
                    tributary_causal_softmax(path, scores + query * lead, lead, 1, visible, visible, scale, nil)
                }
                tributary_weigh_rows(
                    path, values + head * d, keyWidth, visible, d, scores, lead, group, output + place, d)
            }
        }
    }

    /// Gradients of queries, keys and values from that of the output; no earlier tokens.
    ///
    /// - Parameters:
    ///   - output, normalizers: what forward wrote; without the output, rowsum(P dP) takes the place of rowsum(dO O)
    ///   - outputGradient: dO `[tokens, headCount headSize]`
    ///   - shares: room for dK and dV of every query head, 2 x `[tokens, headCount headSize]`
    func backward(
        queries: UnsafePointer<Float>, keys: UnsafePointer<Float>, values: UnsafePointer<Float>, tokens: Int,
        sequences: [Range<Int>], output: UnsafePointer<Float>?, normalizers: UnsafePointer<Float>,
        outputGradient: UnsafePointer<Float>, shares: UnsafeMutablePointer<Float>, queryGradient: UnsafeMutablePointer<Float>,
        keyGradient: UnsafeMutablePointer<Float>, valueGradient: UnsafeMutablePointer<Float>
    ) {
        let path = KernelPath.active.rawValue
        let d = headSize
        let width = queryWidth
        let keyShares = shares
        let valueShares = shares + tokens * width
        Parallel.forEach(count: sequences.count * headCount) { task in
            let range = sequences[task / headCount]
            let head = task % headCount
            let dk = keyShares + range.lowerBound * width + head * d
            let dv = valueShares + range.lowerBound * width + head * d
            if let half = halfHead(head, range, past: 0, queries, keys, values) {
                let place = range.lowerBound * width + head * d
                half.backward(
                    normalizers: normalizers + head * tokens + range.lowerBound,
                    outputGradient: outputGradient + place, queryGradient: queryGradient + place, keyGradient: dk,
                    valueGradient: dv)
                return
            }
            let column = head / group * d
            let k = keys + range.lowerBound * keyWidth + column
            let v = values + range.lowerBound * keyWidth + column
            // From the last tile to the first: the last covers every key, so that its product sets what others add to.
            let tiles = (range.count + Self.tileRows - 1) / Self.tileRows
            for tile in (0..<tiles).reversed() {
                let start = tile * Self.tileRows
                let rows = min(Self.tileRows, range.count - start)
                let visible = isCausal ? start + rows : range.count
                let lead = Self.stride(visible)
                let p = Scratch.scores.floats(2 * rows * lead + rows)
                let ds = p + rows * lead
                let dots = ds + rows * lead
                let first = (range.lowerBound + start) * width + head * d
                gemm(transposeB: true, m: rows, n: visible, k: d, queries + first, lda: width, k, ldb: keyWidth, p, ldc: lead)
                gemm(
                    transposeB: true, m: rows, n: visible, k: d, outputGradient + first, lda: width, v, ldb: keyWidth, ds,
                    ldc: lead)
                if let output { tributary_row_dots(path, outputGradient + first, width, output + first, width, rows, d, dots) }
                tributary_causal_softmax_backward(
                    path, p, ds, lead, rows, visible, isCausal ? start + 1 : visible, scale,
                    normalizers + head * tokens + range.lowerBound + start, output == nil ? nil : dots)
                let beta: Float = tile == tiles - 1 ? 0 : 1
                gemm(
                    transposeA: true, m: visible, n: d, k: rows, p, lda: lead, outputGradient + first, ldb: width, beta: beta, dv,
                    ldc: width)
                gemm(
                    transposeA: true, m: visible, n: d, k: rows, ds, lda: lead, queries + first, ldb: width, beta: beta, dk,
                    ldc: width)
                gemm(m: rows, n: d, k: visible, ds, lda: lead, k, ldb: keyWidth, queryGradient + first, ldc: width)
            }
        }
        // A key head's gradient is the sum over the query heads that share it, in their order.
        forTokens(tokens) { range in
            for token in range {
                for head in 0..<headCount {
                    let from = token * width + head * d
                    let to = token * keyWidth + head / group * d
                    if head % group == 0 {
                        (keyGradient + to).update(from: keyShares + from, count: d)
                        (valueGradient + to).update(from: valueShares + from, count: d)
                    } else {
                        tributary_add(path, keyGradient + to, keyShares + from, d)
                        tributary_add(path, valueGradient + to, valueShares + from, d)
                    }
                }
            }
        }
    }
}

/// Runs `body` over ranges of 64 tokens.
func forTokens(_ tokens: Int, _ body: (Range<Int>) -> Void) {
    Parallel.forEach(count: (tokens + 63) / 64) { body(Parallel.range($0, of: tokens, size: 64)) }
}
