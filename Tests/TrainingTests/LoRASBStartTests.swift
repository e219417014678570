/// LoRA-SB's start against golden values, and its large matrices against what a decomposition must fulfil.

import Adapters
import Checkpoints
import LinearAlgebra
import Primitives
import TestSupport
import Testing
import Training

@Suite struct LoRASBStartTests {
    func generator(_ purpose: String) -> SeededGenerator { SeededGenerator(seed: 9, purpose: purpose) }

    @Test func theGoldenStartHasTheSameProductAndSubspaces() throws {
        let file = try SafetensorsFile(path: Golden.path("federated/lora_sb.safetensors"))
        func golden(_ name: String) throws -> (values: [Double], shape: [Int]) {
            let tensor = try #require(file.tensors[name])
            return (try tensor.doubles(), tensor.shape)
        }
        let rate = try #require(try readJSON(Golden.path("federated/federated.json"))["lora_sb"]?["lr"]?.double)
        let (gradient, shape) = try golden("G")
        let (outputs, inputs) = (shape[0], shape[1])
        let rank = try golden("R").shape[0]
        let update = LoRASBStart.update(gradient: gradient.map { Float($0) }, learningRate: rate)
        #expect(Closeness(update.map(Double.init), try golden("D").values).isWithin(norm: 1e-6))
        var generator = generator("golden")
        let factors = try LoRASBStart.factors(of: update, outputs: outputs, inputs: inputs, rank: rank, generator: &generator)
        #expect(!factors.isRandomised)
        let b = factors.b.map(Double.init)
        let a = factors.a.map(Double.init)
        var scaled = b
        for index in scaled.indices { scaled[index] *= Double(factors.singularValues[index % rank]) }
        let product = multiply(scaled, a, m: outputs, n: inputs, k: rank)
        #expect(Closeness(product, try golden("BRA").values).isWithin(norm: 1e-5))
        let diagonal = try golden("R").values
        #expect(
            Closeness(factors.singularValues.map(Double.init), (0..<rank).map { diagonal[$0 * rank + $0] }).isWithin(norm: 1e-5))
        // Projectors do not depend on signs.
        let (goldenB, goldenA) = (try golden("B").values, try golden("A").values)
        let left = multiply(b, b, m: outputs, n: outputs, k: rank, transposeB: true)
        #expect(
            Closeness(left, multiply(goldenB, goldenB, m: outputs, n: outputs, k: rank, transposeB: true)).isWithin(norm: 1e-5))
        let right = multiply(a, a, m: inputs, n: inputs, k: rank, transposeA: true)
        #expect(
            Closeness(right, multiply(goldenA, goldenA, m: inputs, n: inputs, k: rank, transposeA: true)).isWithin(norm: 1e-5))
    }

    @Test func aLargeMatrixIsDecomposedAtRandomAndItsErrorIsStated() throws {
        var generator = generator("large")
        let (outputs, inputs, rank) = (LoRASBStart.exactLimit + 16, LoRASBStart.exactLimit + 76, 4)
        // Rank 6 with known falling strengths.
        let u = try qr((0..<outputs * 6).map { _ in generator.symmetric(1) }, rows: outputs, columns: 6).q
        let v = try qr((0..<inputs * 6).map { _ in generator.symmetric(1) }, rows: inputs, columns: 6).q
        let strengths: [Float] = [32, 16, 8, 4, 2, 1]
        var scaled = u
        for index in scaled.indices { scaled[index] *= strengths[index % 6] }
        let matrix = multiply(scaled, v, m: outputs, n: inputs, k: 6, transposeB: true)
        let factors = try LoRASBStart.factors(of: matrix, outputs: outputs, inputs: inputs, rank: rank, generator: &generator)
        #expect(factors.isRandomised)
        #expect(Closeness(factors.singularValues, strengths[..<4]).isWithin(norm: 1e-4))
        let missing = (5.0 / (1024 + 256 + 64 + 16 + 5)).squareRoot()
        #expect(abs(factors.relativeError - missing) < 1e-3)
        let gram = multiply(factors.b, factors.b, m: rank, n: rank, k: outputs, transposeA: true)
        #expect(Closeness(gram, (0..<16).map { $0 % 5 == 0 ? 1 : 0 }).isWithin(ofLargest: 1e-5))
    }

    @Test func theStartFromTheBaseIsOrthonormalWithoutCore() throws {
        let maps = [
            LinearMap(name: "model.layers.0.q_proj", outputs: 12, inputs: 20),
            LinearMap(name: "model.layers.0.o_proj", outputs: 20, inputs: 7),
        ]
        let specification = try AdapterSpecification(method: .loraSB, maps: maps, rank: 3, alpha: 1, rankStabilized: false)
        var generator = generator("xs")
        let weights = maps.map { map in (0..<map.outputs * map.inputs).map { _ in generator.symmetric(1) } }
        let (state, report) = try LoRASBStart.fromBase(
            specification: specification,
            weight: { (map) throws(Failure) in weights[maps.firstIndex(of: map)!] }, generator: generator)
        #expect(report.map(\.map) == maps.map(\.name))
        #expect(report.allSatisfy { !$0.isRandomised && $0.relativeError > 0 && $0.relativeError < 1 })
        let start = specification.weights(ofStart: state, initial: specification.initialWeights(&generator))
        #expect(start.trained.values.allSatisfy { $0 == 0 })
        let frozen = try #require(start.frozen)
        for (index, map) in maps.enumerated() {
            let b = Array(frozen.tensor(2 * index))
            let a = Array(frozen.tensor(2 * index + 1))
            let identity = (0..<9).map { Float($0 % 4 == 0 ? 1 : 0) }
            #expect(Closeness(multiply(b, b, m: 3, n: 3, k: map.outputs, transposeA: true), identity).isWithin(ofLargest: 1e-5))
            #expect(Closeness(multiply(a, a, m: 3, n: 3, k: map.inputs, transposeB: true), identity).isWithin(ofLargest: 1e-5))
            // B^T W A^T is diagonal: these are W's own directions.
            let inner = multiply(
                multiply(b, weights[index], m: 3, n: map.inputs, k: map.outputs, transposeA: true), a, m: 3, n: 3, k: map.inputs,
                transposeB: true)
            let diagonal = (0..<9).map { $0 % 4 == 0 ? inner[$0] : 0 }
            #expect(Closeness(inner, diagonal).isWithin(ofLargest: 1e-5))
        }
    }
}
