/// LoRA-SB's start: orthonormal B and A, and R, from the first gradient or from the base itself.

import Adapters
import Checkpoints
import Datasets
import LinearAlgebra
import Model
import Primitives
import Quantization

public enum LoRASBStart {
    /// Matrices whose smaller side is at most this get an exact decomposition; larger ones a randomised one.
    public static let exactLimit = 1024
    /// Bytes of dense gradients held at a time, unless one map alone needs more.
    public static let defaultMemoryLimit = 1 << 30

    /// What the decomposition of one map left out.
    public struct Approximation: Sendable, Equatable {
        public let map: String
        /// Whether the decomposition was randomised.
        public let isRandomised: Bool
        /// Frobenius norm of the matrix less its rank-r part, over that of the matrix.
        public let relativeError: Double
    }

    /// B = U_r, A = V_r^T and diag(S_r) of a matrix, `[outputs, inputs]`, row-major.
    public struct Factors: Sendable {
        /// `[outputs, rank]`, orthonormal columns.
        public let b: [Float]
        /// `[rank, inputs]`, orthonormal rows.
        public let a: [Float]
        /// Falling.
        public let singularValues: [Float]
        public let relativeError: Double
        public let isRandomised: Bool
    }

    /// - Parameter exactLimit: the largest smaller side of a matrix that is decomposed exactly
    public static func factors(
        of matrix: [Float], outputs: Int, inputs: Int, rank: Int, exactLimit: Int = exactLimit,
        generator: inout SeededGenerator
    ) throws(Failure) -> Factors {
        guard min(outputs, inputs) > exactLimit else {
            // In double: singular values of a sign matrix lie close together, and single precision mixes their vectors.
            let (u, s, vt) = try svd(matrix.map(Double.init), rows: outputs, columns: inputs)
            let k = min(outputs, inputs)
            var b = [Float](repeating: 0, count: outputs * rank)
            for row in 0..<outputs {
                for column in 0..<rank { b[row * rank + column] = Float(u[row * k + column]) }
            }
            let squares = s.map { $0 * $0 }
            let whole = squares.reduce(0, +)
            let missing = squares[rank...].reduce(0, +)
            return Factors(
                b: b, a: vt[..<(rank * inputs)].map { Float($0) }, singularValues: s[..<rank].map { Float($0) },
                relativeError: whole > 0 ? (missing / whole).squareRoot() : 0, isRandomised: false)
        }
        let (u, s, vt, error) = try randomizedSVD(
            matrix, rows: outputs, columns: inputs, rank: rank, oversampling: max(10, rank), powerIterations: 3,
            generator: &generator)
        return Factors(b: u, a: vt, singularValues: s, relativeError: error, isRandomised: true)
    }

    /// D = -eta sign(G), the first step of an optimizer with normalised updates (Ponkshe et al. 2024, arXiv:2411.19557,
    /// section 3.2).
    public static func update(gradient: [Float], learningRate: Double) -> [Float] {
        let size = Float(learningRate)
        return gradient.map { $0 > 0 ? -size : $0 < 0 ? size : 0 }
    }

    /// The start from gradients: B, A and R_0 = diag(S_r) of D = -eta sign(sum of dense gradients).
    ///
    /// Dense gradients are held for as many maps at a time as the limit allows; the examples are read once for each
    /// group of maps.
    /// - Parameters:
    ///   - model: with an adapter that adds nothing
    ///   - examples: those of the first step: see `examples(for:)`
    ///   - learningRate: the plan's peak
    ///   - generator: for the purpose "start"; drawn from by randomised decompositions only
    ///   - progress: maps done and their number; false stops with an error
    /// - Returns: the start under `AdapterSpecification.startLayout`
    public static func fromGradient(
        model: AdaptedModel, specification: AdapterSpecification, examples: [Example], batchSize: Int, learningRate: Double,
        memoryLimit: Int = defaultMemoryLimit, generator: SeededGenerator,
        progress: (_ done: Int, _ count: Int) -> Bool = { _, _ in true }
    ) throws(Failure) -> (state: AdapterState, approximations: [Approximation]) {
        guard !examples.isEmpty else { throw Failure(.badData, "there is no example to start from") }
        var generator = generator
        var state = AdapterState(zeros: specification.startLayout)
        var approximations: [Approximation] = []
        var first = 0
        while first < specification.maps.count {
            var end = first
            var bytes = 0
            while end < specification.maps.count {
                let map = specification.maps[end]
                bytes += map.outputs * map.inputs * MemoryLayout<Float>.size
                if end > first, bytes > memoryLimit { break }
                end += 1
            }
            let group = specification.maps[first..<end]
            var gradients: [String: [Float]] = [:]
            for start in stride(from: 0, to: examples.count, by: batchSize) {
                let batch = TokenBatch(examples[start..<min(examples.count, start + batchSize)])
                try model.denseGradient(batch, maps: group.map(\.name), into: &gradients)
            }
            for wave in waves(Array(group)) {
                var matrices: [[Float]] = []
                for map in wave {
                    guard let gradient = gradients.removeValue(forKey: map.name) else {
                        throw Failure(.internalError, "there is no gradient of \(map.name)")
                    }
                    matrices.append(update(gradient: gradient, learningRate: learningRate))
                }
                try decompose(wave, matrices, specification.rank, &generator, &state, &approximations, withSingularValues: true)
                guard progress(approximations.count, specification.maps.count) else { throw stopped }
            }
            first = end
        }
        return (state, approximations)
    }

    /// The start from the base (LoRA-XS, Balazy et al. 2024, arXiv:2405.17604): B and A of the weights as the clients
    /// use them, R_0 = 0.
    ///
    /// - Parameter weight: the dense matrix of a linear map, `[outputs, inputs]`, decoded if it is quantized
    public static func fromBase(
        specification: AdapterSpecification, weight: (LinearMap) throws(Failure) -> [Float], generator: SeededGenerator,
        progress: (_ done: Int, _ count: Int) -> Bool = { _, _ in true }
    ) throws(Failure) -> (state: AdapterState, approximations: [Approximation]) {
        var generator = generator
        var state = AdapterState(zeros: specification.startLayout)
        var approximations: [Approximation] = []
        for wave in waves(specification.maps) {
            var matrices: [[Float]] = []
            for map in wave { matrices.append(try weight(map)) }
            try decompose(wave, matrices, specification.rank, &generator, &state, &approximations, withSingularValues: false)
            guard progress(approximations.count, specification.maps.count) else { throw stopped }
        }
        return (state, approximations)
    }

    /// The start from the base that a model holds.
    public static func fromBase(
        specification: AdapterSpecification, model: LanguageModel, generator: SeededGenerator,
        progress: (_ done: Int, _ count: Int) -> Bool = { _, _ in true }
    ) throws(Failure) -> (state: AdapterState, approximations: [Approximation]) {
        try fromBase(
            specification: specification,
            weight: { (map) throws(Failure) in
                guard let matrix = model.weight(of: map.name) else {
                    throw Failure(.internalError, "the model has no \(map.name)")
                }
                return matrix.decoded()
            }, generator: generator, progress: progress)
    }

    /// What the decompositions left out, in one sentence.
    public static func summary(_ approximations: [Approximation]) -> String {
        func percent(_ share: Double) -> String { "\((share * 1000).rounded() / 10) %" }
        let errors = approximations.map(\.relativeError)
        let random = approximations.count(where: \.isRandomised)
        return "the start keeps \(approximations.count) matrices at the adapter's rank; their relative error is between "
            + "\(percent(errors.min() ?? 0)) and \(percent(errors.max() ?? 0))"
            + (random > 0 ? ", \(random) of them by randomised decomposition" : "")
    }

    /// The examples whose gradients make the start: at least one step's and at least 64, or all there are, in the
    /// order of the generator.
    public static func examples(_ all: [Example], stepSize: Int, generator: SeededGenerator) -> [Example] {
        var generator = generator
        return generator.permutation(all.count).prefix(max(64, stepSize)).map { all[$0] }
    }

    /// Maps that are decomposed at the same time, on as many threads as there are.
    private static let waveSize = 4

    private static func waves(_ maps: [LinearMap]) -> [[LinearMap]] {
        stride(from: 0, to: maps.count, by: waveSize).map { Array(maps[$0..<min(maps.count, $0 + waveSize)]) }
    }

    private static func decompose(
        _ maps: [LinearMap], _ matrices: [[Float]], _ rank: Int, _ generator: inout SeededGenerator, _ state: inout AdapterState,
        _ approximations: inout [Approximation], withSingularValues: Bool
    ) throws(Failure) {
        // One generator for each map, so that no map waits for another.
        let seeds = maps.map { _ in generator.next() }
        var results = [Result<Factors, Failure>?](repeating: nil, count: maps.count)
        results.withUnsafeMutableBufferPointer { results in
            nonisolated(unsafe) let results = results
            Parallel.forEach(count: maps.count) { index in
                var draws = SeededGenerator(seed: seeds[index], purpose: "randomised decomposition")
                do throws(Failure) {
                    results[index] = .success(
                        try factors(
                            of: matrices[index], outputs: maps[index].outputs, inputs: maps[index].inputs, rank: rank,
                            generator: &draws))
                } catch {
                    results[index] = .failure(error)
                }
            }
        }
        for (map, result) in zip(maps, results) {
            let factors = try result!.get()
            fill(&state, map, factors, withSingularValues: withSingularValues)
            approximations.append(
                Approximation(map: map.name, isRandomised: factors.isRandomised, relativeError: factors.relativeError))
        }
    }

    private static let stopped = Failure(.interrupted, "the start of LoRA-SB was stopped; nothing was kept")

    private static func fill(_ state: inout AdapterState, _ map: LinearMap, _ factors: Factors, withSingularValues: Bool) {
        let layout = state.layout
        func put(_ role: AdapterRole, _ values: [Float]) {
            guard let index = layout.index(map: map.name, role: role) else { preconditionFailure("no \(role) of \(map.name)") }
            state.values.replaceSubrange(layout.range(index), with: values)
        }
        put(.loraB, factors.b)
        put(.loraA, factors.a)
        guard withSingularValues else { return }
        let rank = factors.singularValues.count
        var core = [Float](repeating: 0, count: rank * rank)
        for index in 0..<rank { core[index * rank + index] = factors.singularValues[index] }
        put(.core, core)
    }
}
