/// Safetensors files: what is written is read, and nothing broken is accepted.

import Checkpoints
import Glibc
import Primitives
import TestSupport
import Testing

@Suite struct SafetensorsTests {
    let folder = TemporaryFolder()

    /// A file from a header's text and a number of zero bytes.
    func write(_ header: String, data: Int, statedLength: UInt64? = nil) throws -> String {
        var writer = ByteWriter()
        writer.write(statedLength ?? UInt64(header.utf8.count))
        writer.write(raw: header.utf8)
        writer.write(raw: [UInt8](repeating: 0, count: data))
        let path = folder.file("broken.safetensors")
        try writeFile(path, writer.bytes)
        return path
    }

    @Test func `two tensors of one name are not written`() throws {
        let path = folder.file("twice.safetensors")
        let failure = #expect(throws: Failure.self) {
            try writeSafetensors(
                path,
                tensors: [
                    (name: "a", type: .u8, shape: [1], bytes: [1]), (name: "b", type: .f32, shape: [0], bytes: []),
                    (name: "a", type: .f16, shape: [1], bytes: [1, 2]),
                ])
        }
        #expect(failure?.status == .badData && failure?.message.contains("two tensors named a") == true)
        #expect(try listFolder(folder.path).isEmpty)
    }

    func message(_ path: String) -> String {
        do {
            _ = try SafetensorsFile(path: path)
            return "accepted"
        } catch {
            return error.message
        }
    }

    @Test func whatIsWrittenIsReadInEveryType() throws {
        let path = folder.file("all.safetensors")
        let half = Float16(0.333).bitPattern
        try writeSafetensors(
            path,
            tensors: [
                ("b", .u8, [3], [1, 2, 255]), ("a.weight", .f32, [2, 1], [0, 0, 128, 63, 0, 0, 0, 192]),
                ("h", .f16, [1], [UInt8(half & 255), UInt8(half >> 8)]), ("bf", .bf16, [], [0xC0, 0x3F]),
                ("empty", .f32, [0, 4], []), ("i", .i64, [1], [255, 255, 255, 255, 255, 255, 255, 255]),
            ], metadata: ["format": "pt", "who": "\"naïve\"\n"])
        let file = try SafetensorsFile(path: path)
        #expect(file.names == ["a.weight", "b", "bf", "empty", "h", "i"])
        #expect(file.metadata == ["format": "pt", "who": "\"naïve\"\n"])
        #expect(try file.tensors["a.weight"]!.floats() == [1, -2])
        #expect(file.tensors["a.weight"]!.shape == [2, 1])
        #expect(try file.tensors["b"]!.integers() == [1, 2, 255])
        #expect(try file.tensors["i"]!.integers() == [-1])
        #expect(try file.tensors["bf"]!.floats() == [1.5])
        #expect(try file.tensors["h"]!.floats() == [Float(Float16(0.333))])
        #expect(try file.tensors["empty"]!.floats() == [])
        #expect(throws: Failure.self) { try file.tensors["b"]!.floats() }
        for tensor in file.tensors.values { #expect(tensor.range.lowerBound % tensor.dtype.size == 0) }
    }

    @Test func everyTruncationIsRefusedByName() throws {
        let path = folder.file("whole.safetensors")
        try writeSafetensors(path, floats: [("x", [2, 3], [1, 2, 3, 4, 5, 6]), ("y", [1], [7])])
        let bytes = try readFile(path)
        let cut = folder.file("cut.safetensors")
        for count in 0..<bytes.count {
            try writeFile(cut, Array(bytes[..<count]))
            #expect(message(cut).hasPrefix("\(cut) is not a complete safetensors file"), "\(count) bytes")
        }
        try writeFile(cut, bytes + [0])
        #expect(message(cut).contains("its last 1 bytes belong to no tensor"))
    }

    @Test func noBitFlipInTheHeaderTraps() throws {
        let path = folder.file("whole.safetensors")
        try writeSafetensors(path, floats: [("x", [2, 3], [1, 2, 3, 4, 5, 6]), ("y", [1], [7])])
        let bytes = try readFile(path)
        let flipped = folder.file("flipped.safetensors")
        for bit in 0..<(bytes.count - 28) * 8 {
            var copy = bytes
            copy[bit / 8] ^= 1 << UInt8(bit % 8)
            try writeFile(flipped, copy)
            if let file = try? SafetensorsFile(path: flipped) {
                for tensor in file.tensors.values { #expect(tensor.bytes.count == tensor.count * tensor.dtype.size) }
            }
        }
    }

    @Test func eachDefectIsNamed() throws {
        func tensor(_ shape: String, _ begin: Int, _ end: Int, type: String = "F32") -> String {
            "{\"dtype\":\"\(type)\",\"shape\":\(shape),\"data_offsets\":[\(begin),\(end)]}"
        }
        let cases: [(header: String, data: Int, words: String)] = [
            ("{\"x\":\(tensor("[2]", 0, 8)),\"y\":\(tensor("[2]", 4, 12))}", 12, "tensor y overlaps"),
            ("{\"x\":\(tensor("[1]", 0, 4)),\"y\":\(tensor("[1]", 8, 12))}", 12, "4 bytes before tensor y"),
            ("{\"x\":\(tensor("[1]", 0, 4))}", 8, "last 4 bytes"),
            ("{\"x\":\(tensor("[3]", 0, 8))}", 8, "tensor x of type F32 and shape [3] needs 12 bytes, but has 8"),
            ("{\"x\":\(tensor("[2]", 0, 8))}", 4, "tensor x ends at byte 8"),
            ("{\"x\":\(tensor("[4611686018427387904,4]", 0, 0))}", 0, "of tensor x is too large"),
            ("{\"x\":\(tensor("[99999999999999999999]", 0, 0))}", 0, "shape of tensor x"),
            ("{\"x\":\(tensor("[-1]", 0, 0))}", 0, "shape of tensor x"),
            ("{\"x\":\(tensor("[1]", 0, 4, type: "F4"))}", 4, "tensor x is stored as F4"),
            ("{\"x\":\(tensor("[1]", 4, 0))}", 4, "tensor x has no valid data_offsets"),
            ("{\"x\":\(tensor("[1]", 0, 4)),\"x\":\(tensor("[1]", 0, 4))}", 4, "occurs twice"),
            ("{\"x\":{}}", 0, "tensor x has no dtype"),
            ("[]", 0, "not a JSON object"), ("{", 0, "not valid JSON"), ("", 0, "not valid JSON"),
            ("{\"__metadata__\":{\"a\":1}}", 0, "metadata a is not a string"),
        ]
        for (header, data, words) in cases {
            let path = try write(header, data: data)
            #expect(message(path).contains(words), "\(header): \(message(path))")
            #expect(message(path).hasPrefix(path))
        }
        #expect(message(try write("{}", data: 0, statedLength: .max)).contains("100000000 allowed"))
        #expect(message(try write("{}", data: 0, statedLength: 3)).contains("the header has 3 bytes"))
        let path = folder.file("broken.safetensors")
        try writeFile(path, [4, 0, 0, 0, 0, 0, 0, 0, 0x7B, 0x22, 0xFF, 0x22])
        #expect(message(path).contains("not UTF-8"))
        #expect(message(try write(String(repeating: "[", count: 100_000), data: 0)).contains("nested"))
        #expect(message(folder.file("absent")).contains("does not exist"))
        #expect(message(folder.path).contains("is not a file"))
    }

    @Test func tensorsMayArriveInPartsAndInAnyOrder() throws {
        let path = folder.file("parts.safetensors")
        let writer = try SafetensorsWriter(
            path: path,
            tensors: [.init(name: "a", dtype: .f32, shape: [2]), .init(name: "b", dtype: .f32, shape: [1])])
        try writer.append("b", floats: [3])
        try writer.append("a", floats: [1])
        #expect(!fileExists(path))
        try writer.append("a", floats: [2])
        try writer.finish()
        let file = try SafetensorsFile(path: path)
        #expect(try file.tensors["a"]!.floats() == [1, 2])
        #expect(try file.tensors["b"]!.floats() == [3])
        #expect(try listFolder(folder.path) == ["parts.safetensors"])
    }

    @Test func aFileThatCannotFitIsRefusedAndLeavesNothingBehind() throws {
        let failure = #expect(throws: Failure.self) {
            _ = try SafetensorsWriter(
                path: folder.file("huge"), tensors: [.init(name: "x", dtype: .u8, shape: [1 << 52])])
        }
        #expect(failure?.status == .ioError)
        #expect(try listFolder(folder.path) == [])
    }

    @Test func jsonKeepsOrderAndNumbersAndRefusesWhatIsNotJSON() throws {
        let text = "{\"b\":10000.0,\"a\":[1e-05,null,true,\"\\u00e9\\ud83d\\ude00\\n\"],\"c\":{}}"
        var value = try JSONValue(parsing: text.utf8)
        #expect(value.compact == "{\"b\":10000.0,\"a\":[1e-05,null,true,\"é😀\\n\"],\"c\":{}}")
        #expect(try JSONValue(parsing: value.pretty.utf8) == value)
        #expect(value["b"]?.int == 10000 && value["a"]?.elements?[0].double == 1e-05)
        value.set("d", .integer(-3))
        #expect(value["d"]?.int == -3)
        for broken in ["", "{\"a\":}", "[1,]", "01", "1.", "\"\\ud800\"", "nul", "1 2", "\"\u{1}\"", "-", "1e", "{\"a\" 1}"] {
            #expect(throws: JSONValue.SyntaxError.self, "\(broken)") { try JSONValue(parsing: broken.utf8) }
        }
    }
}
