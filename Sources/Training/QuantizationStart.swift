/// Starts that let an adapter make up for what quantization lost: W = Q + s B A + what is left.
///
/// LoftQ (Li et al. 2023, arXiv:2310.08659, algorithm 1) and LQ-LoRA (Guo et al. 2023, arXiv:2311.12023, algorithm 2) alternate
/// between Q = quantize(W - s B A) and s B A = the rank-r part of W - Q, the one beginning with Q, the other with B A. Both change
/// Q. With Q given, as in a federation whose base all members hold already, both come to the same single step, the rank-r part
/// of W - Q, which is the best there is in the Frobenius norm: `residual`.

import Adapters
import Checkpoints
import LinearAlgebra
import Primitives
import Quantization

public enum QuantizationStart {
    /// What the alternation begins with.
    public enum Order: String, Sendable, CaseIterable {
        /// Quantizes W first; every step quantizes, then decomposes.
        case loftq
        /// Decomposes W first; every step decomposes, then quantizes, until the error rises.
        case lq
    }

    /// Larger matrices are decomposed at random: what quantization leaves has a flat spectrum, of which a range finder with
    /// oversampling and power iterations keeps nearly as much.
    public static let exactLimit = 256

    /// How much of a map's weight is not represented, in Frobenius norms.
    public struct MapError: Sendable, Equatable {
        public let map: String
        public let weightNorm: Double
        /// Of W - Q.
        public let plain: Double
        /// Of W - Q - s B A.
        public let started: Double

        public init(map: String, weightNorm: Double, plain: Double, started: Double) {
            self.map = map
            self.weightNorm = weightNorm
            self.plain = plain
            self.started = started
        }

        public var relativePlain: Double { weightNorm > 0 ? plain / weightNorm : 0 }
        public var relativeStarted: Double { weightNorm > 0 ? started / weightNorm : 0 }
    }

    /// The relative errors of all maps taken together.
    public static func total(_ errors: [MapError]) -> (plain: Double, started: Double) {
        func sum(_ value: (MapError) -> Double) -> Double { errors.reduce(0) { $0 + value($1) * value($1) }.squareRoot() }
        let norm = sum(\.weightNorm)
        return norm > 0 ? (sum(\.plain) / norm, sum(\.started) / norm) : (0, 0)
    }

    /// What was lost and what of it is left, in one sentence.
    public static func summary(_ errors: [MapError]) -> String {
        let (plain, started) = total(errors)
        func percent(_ share: Double) -> String { "\((share * 10000).rounded() / 100) %" }
        return
            "the base differs from its unquantized weights by \(percent(plain)) of their norm, with the start by \(percent(started))"
    }

    /// A matrix as Q + s B A.
    public struct Split {
        public let quantized: QuantizedMatrix
        /// `[outputs, rank]`: U sqrt(S / s).
        public let b: [Float]
        /// `[rank, inputs]`: sqrt(S / s) V^T.
        public let a: [Float]
        /// Of W - Q - s B A, after each step; the split is that of the least.
        public let errors: [Double]
    }

    /// B and A with s B A = the rank-r part of `matrix`, half of the singular values in each.
    public static func factors(
        of matrix: [Float], outputs: Int, inputs: Int, rank: Int, scale: Float, generator: inout SeededGenerator
    ) throws(Failure) -> (b: [Float], a: [Float]) {
        let parts = try LoRASBStart.factors(
            of: matrix, outputs: outputs, inputs: inputs, rank: rank, exactLimit: exactLimit, generator: &generator)
        let roots = parts.singularValues.map { (max(0, $0) / scale).squareRoot() }
        var (b, a) = (parts.b, parts.a)
        for index in b.indices { b[index] *= roots[index % rank] }
        for index in a.indices { a[index] *= roots[index / inputs] }
        return (b, a)
    }

    /// The start on a base that stays as it is: s B A is the rank-r part of W - Q.
    public static func residual(
        weights: [Float], base: QuantizedMatrix, map: String, rank: Int, scale: Float, generator: inout SeededGenerator
    ) throws(Failure) -> (b: [Float], a: [Float], error: MapError) {
        var rest = base.decoded()
        subtract(&rest, from: weights)
        let (b, a) = try factors(
            of: rest, outputs: base.rows, inputs: base.columns, rank: rank, scale: scale, generator: &generator)
        let plain = norm(rest)
        subtractProduct(&rest, b, a, outputs: base.rows, inputs: base.columns, rank: rank, scale: scale)
        return (b, a, MapError(map: map, weightNorm: norm(weights), plain: plain, started: norm(rest)))
    }

    /// LoftQ's or LQ-LoRA's alternation; what has the least error is kept.
    ///
    /// - Parameters:
    ///   - steps: at most; LQ-LoRA's order stops before if the error rises
    ///   - quantize: to Q
    public static func split(
        weights: [Float], outputs: Int, inputs: Int, rank: Int, scale: Float, order: Order, steps: Int,
        generator: inout SeededGenerator, quantize: ([Float]) throws(Failure) -> QuantizedMatrix
    ) throws(Failure) -> Split {
        precondition(steps >= 1 && weights.count == outputs * inputs)
        var errors: [Double] = []
        var best: (quantized: QuantizedMatrix, b: [Float], a: [Float])?
        // W - Q before a decomposition, W - s B A before a quantization; Q and B A are 0 at first.
        var rest = weights
        for step in 0..<steps {
            let factors: (b: [Float], a: [Float])
            let quantized: QuantizedMatrix
            switch order {
            case .loftq:
                quantized = try quantize(rest)
                rest = quantized.decoded()
                subtract(&rest, from: weights)
                factors = try self.factors(
                    of: rest, outputs: outputs, inputs: inputs, rank: rank, scale: scale, generator: &generator)
            case .lq:
                factors = try self.factors(
                    of: rest, outputs: outputs, inputs: inputs, rank: rank, scale: scale, generator: &generator)
                rest = weights
                subtractProduct(&rest, factors.b, factors.a, outputs: outputs, inputs: inputs, rank: rank, scale: scale)
                quantized = try quantize(rest)
                rest = quantized.decoded()
                subtract(&rest, from: weights)
            }
            // Now W - Q; less s B A it is what is left.
            var left = rest
            subtractProduct(&left, factors.b, factors.a, outputs: outputs, inputs: inputs, rank: rank, scale: scale)
            let error = norm(left)
            if order == .lq, let last = errors.last, error > last { break }
            if errors.isEmpty || error < errors.min()! { best = (quantized, factors.b, factors.a) }
            errors.append(error)
            guard step + 1 < steps, order == .loftq else { continue }
            rest = weights
            subtractProduct(&rest, factors.b, factors.a, outputs: outputs, inputs: inputs, rank: rank, scale: scale)
        }
        guard let best else { throw Failure(.internalError, "no step of the start was made") }
        return Split(quantized: best.quantized, b: best.b, a: best.a, errors: errors)
    }

    /// Looks at the source of a start before anything expensive is done: it holds the weight of every map, unquantized and in its
    /// shape.
    ///
    /// - Throws: `Failure(.usage)` that names the first map that it does not hold
    public static func check(_ source: CheckpointFolder, holds maps: [LinearMap]) throws(Failure) {
        for map in maps {
            let tensor = try storedWeight(of: map, in: source)
            guard tensor.shape == [map.outputs, map.inputs] else {
                throw Failure(
                    .usage,
                    "\(source.path) holds \(map.name) as \(tensor.shape), but the base as \([map.outputs, map.inputs]): give the model from which the base was made with --unquantized-model"
                )
            }
        }
    }

    private static func storedWeight(of map: LinearMap, in checkpoint: CheckpointFolder) throws(Failure) -> StoredTensor {
        guard checkpoint.hasTensor(map.name + ".weight"), !checkpoint.isQuantized(map.name) else {
            throw Failure(
                .usage,
                "\(checkpoint.path) holds no unquantized \(map.name): give the model from which the base was made with --unquantized-model"
            )
        }
        return try checkpoint.tensor(map.name + ".weight")
    }

    /// The weight of a map of a checkpoint that is not quantized; its mapped pages are given back.
    public static func weights(of map: LinearMap, in checkpoint: CheckpointFolder) throws(Failure) -> [Float] {
        try WeightSource(storedWeight(of: map, in: checkpoint), rows: map.outputs, columns: map.inputs).floats()
    }

    /// The start of every map, computed one after another, under `AdapterSpecification.startLayout`.
    ///
    /// - Parameters:
    ///   - base: the map's weight as the clients hold it
    ///   - weights: the same unquantized, `[outputs, inputs]`
    ///   - progress: maps done and their number; false stops with an error
    /// - Throws: `Failure` if a base is not the quantized form of its weights
    public static func residual(
        specification: AdapterSpecification, base: (LinearMap) throws(Failure) -> QuantizedMatrix,
        weights: (LinearMap) throws(Failure) -> [Float], generator: SeededGenerator,
        progress: (_ done: Int, _ count: Int) -> Bool = { _, _ in true }
    ) throws(Failure) -> (state: AdapterState, errors: [MapError]) {
        var generator = generator
        var state = AdapterState(zeros: specification.startLayout)
        var errors: [MapError] = []
        for map in specification.maps {
            let (b, a, error) = try residual(
                weights: try weights(map), base: try base(map), map: map.name, rank: specification.rank,
                scale: specification.scale, generator: &generator)
            guard error.relativePlain < largestError else {
                throw Failure(
                    .usage,
                    "\(map.name) of the unquantized model differs from the base by \((error.relativePlain * 100).rounded()) % of its norm, which no quantization does: give the model from which the base was made with --unquantized-model"
                )
            }
            for (role, values) in [(AdapterRole.loraB, b), (.loraA, a)] {
                guard let index = state.layout.index(map: map.name, role: role) else {
                    throw Failure(.internalError, "the start has no \(role) of \(map.name)")
                }
                state.values.replaceSubrange(state.layout.range(index), with: values)
            }
            errors.append(error)
            guard progress(errors.count, specification.maps.count) else {
                throw Failure(.interrupted, "the start was stopped; nothing was kept")
            }
        }
        guard errors.contains(where: { $0.plain > 0 }) else {
            throw Failure(
                .usage, "the base holds its weights exactly, so that this start would add nothing: use --start zero, or quantize")
        }
        return (state, errors)
    }

    /// Above the worst format (FP4 errs by 0.12 of the norm); two unrelated models of one shape differ by about 1.4. A fine-tuned
    /// model's weights pass.
    private static let largestError = 0.6

    // MARK: - Arithmetic, over all threads

    private static let part = 1 << 18

    private static func parts(_ count: Int, _ body: (Range<Int>) -> Void) {
        Parallel.forEach(count: (count + part - 1) / part) { body(Parallel.range($0, of: count, size: part)) }
    }

    /// x = y - x.
    private static func subtract(_ x: inout [Float], from y: [Float]) {
        precondition(x.count == y.count)
        x.withUnsafeMutableBufferPointer { x in
            nonisolated(unsafe) let x = x
            y.withUnsafeBufferPointer { y in
                nonisolated(unsafe) let y = y
                parts(y.count) { for index in $0 { x[index] = y[index] - x[index] } }
            }
        }
    }

    /// x -= scale B A.
    private static func subtractProduct(
        _ x: inout [Float], _ b: [Float], _ a: [Float], outputs: Int, inputs: Int, rank: Int, scale: Float
    ) {
        x.withUnsafeMutableBufferPointer { x in
            nonisolated(unsafe) let x = x.baseAddress!
            let task = 64
            Parallel.forEach(count: (outputs + task - 1) / task) { index in
                let rows = Parallel.range(index, of: outputs, size: task)
                b.withUnsafeBufferPointer { b in
                    a.withUnsafeBufferPointer { a in
                        gemm(
                            m: rows.count, n: inputs, k: rank, alpha: -scale, b.baseAddress! + rows.lowerBound * rank, lda: rank,
                            a.baseAddress!, ldb: inputs, beta: 1, x + rows.lowerBound * inputs, ldc: inputs)
                    }
                }
            }
        }
    }

    /// The Frobenius norm, summed in double part by part.
    static func norm(_ x: [Float]) -> Double {
        var sums = [Double](repeating: 0, count: (x.count + part - 1) / part)
        sums.withUnsafeMutableBufferPointer { sums in
            nonisolated(unsafe) let sums = sums
            x.withUnsafeBufferPointer { x in
                nonisolated(unsafe) let x = x
                parts(x.count) { range in
                    var sum = 0.0
                    for index in range { sum += Double(x[index]) * Double(x[index]) }
                    sums[range.lowerBound / part] = sum
                }
            }
        }
        return sums.reduce(0, +).squareRoot()
    }
}
