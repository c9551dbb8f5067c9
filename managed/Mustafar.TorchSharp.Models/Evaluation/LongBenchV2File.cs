using System.Globalization;
using System.Security.Cryptography;
using System.Text;
using System.Text.Json;
using Mustafar.Models.Checkpoint;

namespace Mustafar.Models.Evaluation;

/// <summary>The questions of LongBench v2.</summary>
/// <param name="Questions">The questions, in the order of the file.</param>
/// <param name="Hash">SHA-256 of the file.</param>
internal sealed record LongBenchV2File(IReadOnlyList<LongBenchV2Question> Questions, string Hash)
{
    private const long LargestFile = 1L << 30; // the published file has about 470 MB

    private static readonly string[] s_choices = ["A", "B", "C", "D"];

    /// <summary>Reads a file: a JSON array of objects, or one object per line.</summary>
    /// <exception cref="FileNotFoundException">There is no such file.</exception>
    /// <exception cref="CheckpointException">The file is not valid.</exception>
    public static LongBenchV2File Load(string path)
    {
        ArgumentException.ThrowIfNullOrEmpty(path);
        byte[] bytes = CheckpointFile.ReadAllBytes(path, LargestFile);
        ReadOnlySpan<byte> text = bytes.AsSpan().StartsWith(Encoding.UTF8.Preamble) ? bytes.AsSpan(Encoding.UTF8.Preamble.Length) : bytes;
        List<LongBenchV2Question> questions = text.TrimStart(" \t\r\n"u8) is [(byte)'[', ..] ? Array(bytes, path) : Lines(bytes, path);
        return questions.Count > 0
            ? new LongBenchV2File(questions, Convert.ToHexString(SHA256.HashData(bytes)))
            : throw new CheckpointException("expected questions, but there are none.", path);
    }

    private static List<LongBenchV2Question> Array(byte[] bytes, string path)
    {
        // Wrapped in an object, because the root has to be one.
        using JsonDocument document = JsonFile.Parse((byte[])[.. "{\"questions\":"u8, .. bytes, (byte)'}'], path);
        return
        [
            .. document.RootElement.GetProperty("questions").EnumerateArray().Select(
                (item, i) => Question(item, string.Create(CultureInfo.InvariantCulture, $"{path}: question {i}"))),
        ];
    }

    private static List<LongBenchV2Question> Lines(byte[] bytes, string path) =>
    [
        .. JsonLines.Read(bytes, path, Question),
    ];

    private static LongBenchV2Question Question(JsonElement item, string place)
    {
        if (item.ValueKind != JsonValueKind.Object)
        {
            throw new CheckpointException($"expected an object, but got {item.Quote()}.", place);
        }

        string answer = Text("answer");
        string choices = string.Concat(s_choices.Select(choice => $"({choice}) {Text($"choice_{choice}").Trim()}\n"));
        string prompt = $"Please read the following text and answer the question below.\n\n<text>\n{Text("context").Trim()}\n</text>\n\n"
            + $"What is the correct answer to this question: {Text("question").Trim()}\nChoices:\n{choices}\n"
            + "Format your response as follows: \"The correct answer is (insert answer here)\".";
        return s_choices.Contains(answer)
            ? new LongBenchV2Question(prompt, answer, Text("difficulty"), Text("length"))
            : throw new CheckpointException($"expected A, B, C or D as 'answer', but got '{answer}'.", place);

        string Text(string key) => item.Require(key, JsonValueKind.String, place).GetString()!;
    }
}

/// <summary>A question of LongBench v2.</summary>
/// <param name="Prompt">The whole prompt.</param>
/// <param name="Answer">The correct choice.</param>
/// <param name="Difficulty">The difficulty: easy or hard.</param>
/// <param name="Length">The length: short, medium or long.</param>
internal sealed record LongBenchV2Question(string Prompt, string Answer, string Difficulty, string Length);
