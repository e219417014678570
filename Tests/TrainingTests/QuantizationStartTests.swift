/// Quantization-aware starts: never worse than plain quantization, as good as measured elsewhere, and what is written is what counts.

import Adapters
import Checkpoints
import LinearAlgebra
import Primitives
import Quantization
import TestSupport
import Testing
import Training

@Suite struct QuantizationStartTests {
    private func generator(_ purpose: String) -> SeededGenerator { SeededGenerator(seed: 4, purpose: purpose) }

    /// U diag(i^-0.5) V^T with random orthonormal U and V: weights with a structure that a low rank can hold.
    private func structured(_ size: Int) throws -> [Float] {
        var generator = generator("structured")
        func normal() -> Float { Float((0..<12).reduce(-6.0) { sum, _ in sum + generator.unit() }) }
        var u = try qr((0..<size * size).map { _ in normal() }, rows: size, columns: size).q
        let v = try qr((0..<size * size).map { _ in normal() }, rows: size, columns: size).q
        for index in u.indices { u[index] /= Float(index % size + 1).squareRoot() }
        return multiply(u, v, m: size, n: size, k: size, transposeB: true)
    }

    private func errors(
        _ weights: [Float], _ size: Int, _ order: QuantizationStart.Order, rank: Int, steps: Int, format: WeightFormat = .nf4
    ) throws -> [Double] {
        var generator = generator("decomposition")
        let split = try QuantizationStart.split(
            weights: weights, outputs: size, inputs: size, rank: rank, scale: 2, order: order, steps: steps, generator: &generator
        ) { (values) throws(Failure) in try format.encoded(WeightSource(values, rows: size, columns: size)) }
        let norm = weights.reduce(0.0) { $0 + Double($1) * Double($1) }.squareRoot()
        return split.errors.map { $0 / norm }
    }

    /// Relative errors after 1, 3 and 5 steps, as a NumPy script measured them on a matrix of the same kind.
    @Test func `both orders reach the errors measured elsewhere`() throws {
        let size = 512
        let weights = try structured(size)
        let plain = QuantizedMatrix(try NF4.encode(weights), rows: size, columns: size)
            .error(from: WeightSource(weights, rows: size, columns: size))
        #expect(abs(plain.error / plain.norm - 0.0918) < 0.003, "\(plain.error / plain.norm)")
        for (rank, loftq, lq) in [
            (16, [0.0862, 0.0805, 0.0785], [0.0652, 0.0606, 0.0586]), (64, [0.0717, 0.0636, 0.0619], [0.0507, 0.0403, 0.0378]),
        ] {
            for (order, expected) in [(QuantizationStart.Order.loftq, loftq), (.lq, lq)] {
                let errors = try errors(weights, size, order, rank: rank, steps: 5)
                #expect(errors.count == 5, "\(order) \(rank): \(errors)")
                for (step, wanted) in zip([0, 2, 4], expected) where step < errors.count {
                    #expect(abs(errors[step] - wanted) < 0.06 * wanted, "\(order) \(rank) step \(step + 1): \(errors[step])")
                }
            }
        }
    }

    @Test(arguments: [WeightFormat.int8.name, "nf4", "fp4"]) func `a start is never worse than none`(name: String) throws {
        let format = try #require(WeightFormat.named(name))
        let (outputs, inputs, rank) = (72, 100, 6)
        var generator = generator("unstructured")
        let weights = (0..<outputs * inputs).map { _ in generator.symmetric(1) * generator.symmetric(1) }
        let source = WeightSource(weights, rows: outputs, columns: inputs)
        let base = try format.encoded(source)
        let made = try QuantizationStart.residual(
            weights: weights, base: base, map: "m", rank: rank, scale: 0.5, generator: &generator)
        let plain = base.error(from: source)
        #expect(abs(made.error.plain - plain.error) <= 1e-6 * plain.error && made.error.started < made.error.plain)
        // s B A is the best of its rank: what is left are the other singular values.
        let rest = zip(weights, base.decoded()).map { Double($0) - Double($1) }
        let values = try svd(rest, rows: outputs, columns: inputs).s
        let least = values[rank...].reduce(0) { $0 + $1 * $1 }.squareRoot()
        #expect(abs(made.error.started - least) <= 1e-4 * least)
        for order in QuantizationStart.Order.allCases {
            let split = try QuantizationStart.split(
                weights: weights, outputs: outputs, inputs: inputs, rank: rank, scale: 0.5, order: order, steps: 8,
                generator: &generator
            ) { (values) throws(Failure) in try format.encoded(WeightSource(values, rows: outputs, columns: inputs)) }
            if order == .loftq { #expect(split.errors[0] <= plain.error) }
            if order == .lq { #expect(zip(split.errors, split.errors.dropFirst()).allSatisfy { $0 >= $1 }, "\(split.errors)") }
            // The scale is folded in: Q + 0.5 B A errs as stated.
            let product = multiply(split.b, split.a, m: outputs, n: inputs, k: rank)
            let left = zip(weights, zip(split.quantized.decoded(), product)).map {
                Double($0) - Double($1.0) - 0.5 * Double($1.1)
            }
            let error = left.reduce(0) { $0 + $1 * $1 }.squareRoot()
            let stated = try #require(split.errors.min())
            #expect(abs(error - stated) <= 1e-4 * stated, "\(order)")
        }
    }

    @Test func `another model's weights, and a base that lost nothing, are refused`() throws {
        let maps = [LinearMap(name: "m", outputs: 32, inputs: 64)]
        let specification = try AdapterSpecification(method: .lora, maps: maps, rank: 2, alpha: 4, rankStabilized: false)
        var generator = generator("refused")
        let weights = (0..<32 * 64).map { _ in generator.symmetric(1) }
        let others = (0..<32 * 64).map { _ in generator.symmetric(1) }
        func start(_ base: QuantizedMatrix) throws {
            _ = try QuantizationStart.residual(
                specification: specification, base: { (_) throws(Failure) in base }, weights: { (_) throws(Failure) in weights },
                generator: generator)
        }
        try start(QuantizedMatrix(try NF4.encode(weights), rows: 32, columns: 64))
        let foreign = #expect(throws: Failure.self) { try start(QuantizedMatrix(try NF4.encode(others), rows: 32, columns: 64)) }
        #expect(foreign?.message.contains("from which the base was made") == true)
        let exact = #expect(throws: Failure.self) { try start(QuantizedMatrix(weights, rows: 32, columns: 64)) }
        #expect(exact?.message.contains("holds its weights exactly") == true)
    }
}
