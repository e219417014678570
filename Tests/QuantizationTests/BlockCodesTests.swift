/// Bytes of the dynamic maps with a scale for each block, held against the definition and against bitsandbytes.

import Checkpoints
import LinearAlgebra
import Primitives
import Quantization
import TestSupport
import Testing

@Suite struct BlockCodesTests {
    @Test(arguments: [DynamicMap.signed, .unsigned]) func `codes are the nearest on every kernel path`(_ map: DynamicMap) {
        // Every threshold and its neighbours, every value, and magnitudes over many decades, in blocks with the scale 1 or not.
        var units: [Float] = map.values
        for (low, high) in zip(map.values, map.values.dropFirst()) {
            let middle = Float((Double(low) + Double(high)) / 2)
            units += [middle.nextDown, middle, middle.nextUp]
        }
        var generator = SeededGenerator(seed: 5, purpose: "codes")
        for exponent in 0..<1200 {
            var unit = generator.symmetric(1)
            for _ in 0..<exponent % 30 { unit /= 2 }
            units.append(unit)
        }
        units += [0, -0.0, .leastNonzeroMagnitude, .leastNormalMagnitude]
        if map.values[0] == 0 { units = units.map(\.magnitude) }
        var values: [Float] = []
        for start in stride(from: 0, to: units.count, by: 255) {
            values += [1] + units[start..<min(units.count, start + 255)]
        }
        for factor: Float in [1, 0x1p-40, 3.7] {
            let scaled = values.map { $0 * factor }
            let expected = scaled.indices.map { index in
                let scale = scaled[(index / 256 * 256)..<min(scaled.count, index / 256 * 256 + 256)].map(\.magnitude).max()!
                let unit = Double(scaled[index] / scale)
                // The first of the nearest; in the unsigned map zero is for zero only.
                let codes = map.values[0] == 0 && unit > 0 ? 1..<256 : 0..<256
                return UInt8(codes.min { abs(Double(map.values[$0]) - unit) < abs(Double(map.values[$1]) - unit) }!)
            }
            for path in KernelPath.supported {
                let codes = BlockCodes(encoding: scaled, map: map, path: path)
                #expect(codes.codes == expected, "\(path)")
                #expect(codes.scales.allSatisfy { $0 == factor })
            }
        }
    }

    @Test func `blocks of zeros, of infinities and of less than a vector are possible`() {
        #expect(BlockCodes(encoding: [0, 0, 0], map: .signed).decoded() == [0, 0, 0])
        #expect(BlockCodes(zeros: 300, map: .unsigned).decoded() == [Float](repeating: 0, count: 300))
        let huge = BlockCodes(encoding: [.infinity, 1], map: .unsigned)
        #expect(huge.decoded().allSatisfy(\.isFinite) && huge.scales == [.greatestFiniteMagnitude])
        let tiny: Float = .leastNonzeroMagnitude
        #expect(BlockCodes(encoding: [tiny, 0, -tiny], map: .signed).decoded()[0] == tiny)
        #expect(BlockCodes(encoding: [], map: .signed).byteCount == 0)
    }

    @Test(arguments: ["33x64", "64x192", "96x128"]) func `codes are those of bitsandbytes but for its coarse table`(
        _ shape: String
    ) throws {
        let file = try SafetensorsFile(path: Golden.path("quant/quant.safetensors"))
        func tensor(_ name: String) throws -> StoredTensor { try #require(file.tensors[shape + name]) }
        let values = try tensor(".input").floats()
        let codes = BlockCodes(encoding: values, map: .signed)
        let reference = Array(try tensor(".dynamic8.codes").bytes)
        #expect(codes.scales == (try tensor(".dynamic8.absmax").floats()))
        // The table has a code for each 32,768th of the scale.
        for (index, code) in reference.enumerated() {
            let unit = Double(values[index] / codes.scales[index / 256])
            let possible = DynamicMap.signed.nearest(unit - 0x1p-15)...DynamicMap.signed.nearest(unit + 0x1p-15)
            #expect(possible.contains(code) && possible.contains(codes.codes[index]), "\(index)")
        }
        func error(_ decoded: [Float]) -> Double { Closeness(decoded, values).relativeNorm }
        #expect(error(codes.decoded()) < error(try tensor(".dynamic8.dequantized").floats()))
    }
}
