/// The language head and its loss: logits exist for a chunk of tokens at a time, and become their own gradient at once.

import CKernels
import LinearAlgebra
import Quantization

final class LanguageHead {
    private let weight: QuantizedMatrix
    private let logits = FloatBuffer()
    private let partial = FloatBuffer()
    private let compute: ComputeType
    /// Hidden states and gradients of logits, rounded; for bfloat16 only.
    private let halfStates = HalfRows()
    private let halfLogits = HalfRows()

    /// Bytes of logits that exist at once, at most, unless 32 tokens need more.
    private static let chunkBytes = 64 << 20
    /// Rows of the head decoded at once.
    private static let slab = 256
    /// Parts of the vocabulary whose contributions to the hidden states' gradient are summed apart, then in order.
    private static let maximumParts = 16

    init(_ weight: QuantizedMatrix, compute: ComputeType) {
        self.weight = weight
        self.compute = compute
    }

    private var vocabulary: Int { weight.rows }
    private var hidden: Int { weight.columns }
    /// Tokens of a chunk: a function of the vocabulary alone.
    private var chunk: Int { max(32, min(512, Self.chunkBytes / (4 * vocabulary) / 32 * 32)) }

    /// Logits `[count, vocabulary]` of normed hidden states `[count, hidden]`.
    func logits(_ states: UnsafePointer<Float>, count: Int, into target: UnsafeMutablePointer<Float>) {
        let (hidden, vocabulary) = (hidden, vocabulary)
        guard count >= FewTokens.limit else {
            weight.multiply(FewTokens(states, count: count, columns: hidden, for: [weight]), into: target)
            return
        }
        if compute == .bfloat16 {
            halfStates.reserve(rows: count, columns: hidden)
            forTokens(count) { range in
                halfStates.round(states + range.lowerBound * hidden, lead: hidden, rows: range, columns: hidden)
            }
            weight.multiply(halfStates, count: count, transposed: false, into: target)
            return
        }
        Parallel.forEach(count: (vocabulary + Self.slab - 1) / Self.slab) { task in
            let rows = Parallel.range(task, of: vocabulary, size: Self.slab)
            weight.withTile(rows: rows, columns: 0..<hidden) { tile, lead in
                gemm(
                    transposeB: true, m: count, n: rows.count, k: hidden, states, lda: hidden, tile, ldb: lead,
                    target + rows.lowerBound, ldc: vocabulary)
            }
        }
    }

    /// The loss of each row in nats.
    ///
    /// - Parameters:
    ///   - states: normed hidden states `[targets.count, hidden]`
    ///   - scales: factor of each row's loss in the gradient; never 0 where there is one
    ///   - gradient: overwritten with the gradient of `states`; nil for none
    func loss(
        _ states: UnsafePointer<Float>, targets: [Int32], scales: [Float] = [], gradient: UnsafeMutablePointer<Float>? = nil
    ) -> [Double] {
        let (hidden, vocabulary, chunk) = (hidden, vocabulary, chunk)
        let path = KernelPath.active.rawValue
        var losses = [Double](repeating: 0, count: targets.count)
        let parts = max(1, min(Self.maximumParts, vocabulary / 2048))
        let partRows = ((vocabulary + parts - 1) / parts + Self.slab - 1) / Self.slab * Self.slab
        var start = 0
        while start < targets.count {
            let count = min(chunk, targets.count - start)
            let values = logits.reserve(count * vocabulary)
            logits(states + start * hidden, count: count, into: values)
            losses.withUnsafeMutableBufferPointer { losses in
                nonisolated(unsafe) let losses = losses
                let first = start
                let inHalves = gradient != nil && compute == .bfloat16
                if inHalves { halfLogits.reserve(rows: count, columns: vocabulary) }
                Parallel.forEach(count: (count + 7) / 8) { task in
                    for row in Parallel.range(task, of: count, size: 8) {
                        if inHalves {
                            losses[first + row] = tributary_cross_entropy_bf16(
                                path, values + row * vocabulary, vocabulary, Int(targets[first + row]), scales[first + row],
                                halfLogits.pointer + row * halfLogits.stride)
                            continue
                        }
                        losses[first + row] = tributary_cross_entropy(
                            path, values + row * vocabulary, vocabulary, Int(targets[first + row]),
                            gradient == nil ? 0 : scales[first + row])
                    }
                }
            }
            if let gradient, compute == .bfloat16 {
                weight.multiply(halfLogits, count: count, transposed: true, into: gradient + start * hidden)
            } else if let gradient {
                let sums = partial.reserve(parts * count * hidden)
                Parallel.forEach(count: parts) { part in
                    let target = sums + part * count * hidden
                    let all = min(part * partRows, vocabulary)..<min((part + 1) * partRows, vocabulary)
                    if all.isEmpty { target.update(repeating: 0, count: count * hidden) }
                    var row = all.lowerBound
                    while row < all.upperBound {
                        let rows = row..<min(row + Self.slab, all.upperBound)
                        weight.withTile(rows: rows, columns: 0..<hidden) { tile, lead in
                            gemm(
                                m: count, n: hidden, k: rows.count, values + rows.lowerBound, lda: vocabulary, tile, ldb: lead,
                                beta: row == all.lowerBound ? 0 : 1, target, ldc: hidden)
                        }
                        row = rows.upperBound
                    }
                }
                let target = gradient + start * hidden
                forTokens(count) { range in
                    let (first, size) = (range.lowerBound * hidden, range.count * hidden)
                    (target + first).update(from: sums + first, count: size)
                    for part in 1..<max(1, parts) {
                        tributary_add(path, target + first, sums + part * count * hidden + first, size)
                    }
                }
            }
            start += count
        }
        return losses
    }
}
