/// The language head and its loss: logits exist for a chunk of tokens at a time, and become their own gradient at once.

import CKernels
import LinearAlgebra
import Quantization

final class LanguageHead {
    private let weight: QuantizedMatrix
    /// Logits; in bfloat16 each row becomes its own gradient, rounded, where it stands.
    private let logits = HalfRows()
    private let partial = FloatBuffer()
    private let compute: ComputeType
    /// Hidden states, rounded; for bfloat16 only.
    private let halfStates = HalfRows()

    /// Bytes of logits that exist at once, at most, unless 32 tokens need more, and their tokens.
    private static let chunkBytes = 64 << 20
    private static let chunkTokens = 256
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
    private var chunk: Int { Self.chunk(vocabulary: vocabulary) }

    private static func chunk(vocabulary: Int) -> Int { max(32, min(chunkTokens, chunkBytes / (4 * vocabulary) / 32 * 32)) }

    /// Bytes that the losses and gradients of `count` tokens take.
    static func byteCount(vocabulary: Int, hidden: Int, count: Int, compute: ComputeType) -> Int {
        let rows = min(count, chunk(vocabulary: vocabulary))
        let sums = compute == .bfloat16 ? 2 * rows * hidden : 4 * parts(vocabulary) * rows * hidden
        return 4 * rows * vocabulary + sums
    }

    private static func parts(_ vocabulary: Int) -> Int { max(1, min(maximumParts, vocabulary / 2048)) }

    /// Logits `[count, vocabulary]` of normed hidden states `[count, hidden]`, `lead` floats from row to row.
    func logits(_ states: UnsafePointer<Float>, count: Int, into target: UnsafeMutablePointer<Float>, lead: Int) {
        let (hidden, vocabulary, targetLead) = (hidden, vocabulary, lead)
        let path = KernelPath.active.rawValue
        let isSmall = count < LinearMaps.fewTokens
        if compute == .bfloat16, !isSmall {
            halfStates.reserve(rows: count, columns: hidden)
            forTokens(count) { range in
                halfStates.round(states + range.lowerBound * hidden, lead: hidden, rows: range, columns: hidden)
            }
            weight.multiply(halfStates, count: count, transposed: false, into: target, lead: lead)
            return
        }
        let slab = isSmall ? LinearMaps.rowsPerSmallTask : Self.slab
        Parallel.forEach(count: (vocabulary + slab - 1) / slab) { task in
            let rows = Parallel.range(task, of: vocabulary, size: slab)
            weight.withTile(rows: rows, columns: 0..<hidden) { tile, lead in
                if isSmall {
                    for token in 0..<count {
                        tributary_dot_rows(
                            path, tile, lead, rows.count, hidden, states + token * hidden,
                            target + token * targetLead + rows.lowerBound)
                    }
                } else {
                    gemm(
                        transposeB: true, m: count, n: rows.count, k: hidden, states, lda: hidden, tile, ldb: lead,
                        target + rows.lowerBound, ldc: targetLead)
                }
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
        let parts = Self.parts(vocabulary)
        let partRows = ((vocabulary + parts - 1) / parts + Self.slab - 1) / Self.slab * Self.slab
        var start = 0
        while start < targets.count {
            let count = min(chunk, targets.count - start)
            let (values, lead) = logits.reserveFloats(rows: count, columns: vocabulary)
            logits(states + start * hidden, count: count, into: values, lead: lead)
            losses.withUnsafeMutableBufferPointer { losses in
                nonisolated(unsafe) let losses = losses
                let first = start
                let inHalves = gradient != nil && compute == .bfloat16
                Parallel.forEach(count: (count + 7) / 8) { task in
                    for row in Parallel.range(task, of: count, size: 8) {
                        if inHalves {
                            let rounded = Scratch.first.memory(of: UInt16.self, count: vocabulary + 1)
                            losses[first + row] = tributary_cross_entropy_bf16(
                                path, values + row * lead, vocabulary, Int(targets[first + row]), scales[first + row], rounded)
                            (logits.pointer + row * logits.stride).update(from: rounded, count: (vocabulary + 1) / 2 * 2)
                            continue
                        }
                        losses[first + row] = tributary_cross_entropy(
                            path, values + row * lead, vocabulary, Int(targets[first + row]),
                            gradient == nil ? 0 : scales[first + row])
                    }
                }
            }
            if let gradient, compute == .bfloat16 {
                weight.multiply(logits, count: count, transposed: true, into: gradient + start * hidden, lead: hidden)
            } else if let gradient {
                let logitsLead = lead
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
                                m: count, n: hidden, k: rows.count, values + rows.lowerBound, lda: logitsLead, tile, ldb: lead,
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
