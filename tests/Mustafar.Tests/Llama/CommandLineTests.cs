using System.Text.Json;
using Mustafar.Examples.Llama.Commands;

namespace Mustafar.Tests.Llama;

[TestFixture]
public sealed class CommandLineTests
{
    [TestCase("generate", "--max-tokens", "8", "--prompt", "import os\n")]
    [TestCase("generate", "--max-tokens", "8", "--temperature", "0.8", "--top-k", "50", "--top-p", "0.9", "--seed", "4")]
    [TestCase("generate", "--max-tokens", "8", "--prompt", "import os\n", "--prompt", "def ")]
    [TestCase("compare", "--max-tokens", "4", "--prompt-file", "{short}")]
    [TestCase("perplexity", "--windows", "1", "--context", "160", "--prefill", "130")]
    [TestCase("recall", "--contexts", "2", "--context", "256")]
    [TestCase("score", "--file", "{short}")]
    [TestCase("score", "--ids-file", "{ids}", "--prefill", "3")]
    public void JsonIsOneObjectAndAllOfStandardOutput(params string[] args)
    {
        foreach (string attention in (string[])["mustafar", "dense"])
        {
            (int code, string output, string error) = Run([.. args, "--json", "--attention", attention]);
            Assert.That(code, Is.Zero, error);
            using JsonDocument document = JsonDocument.Parse(output);
            using (Assert.EnterMultipleScope())
            {
                Assert.That(document.RootElement.ValueKind, Is.EqualTo(JsonValueKind.Object));
                Assert.That(document.RootElement.GetProperty("run").GetProperty("head_dim").GetInt32(), Is.EqualTo(128));
                Assert.That(output.TrimEnd('\n'), Does.Not.Contain('\n'));
            }
        }
    }

    [Test]
    public void GenerateStreamsTextAndReportsSpeedSizeAndSparsity()
    {
        (int code, string output, string error) = Run("generate", "--prompt", "import os\n", "--max-tokens", "8");
        using (Assert.EnterMultipleScope())
        {
            Assert.That(code, Is.Zero, error);
            Assert.That(output, Does.StartWith("import os\n"));
            Assert.That(output, Does.Contain("tokens/s").And.Contain("dense fp16").And.Contain("40 of 128"));
            Assert.That(error, Is.Empty);
        }
    }

    [Test]
    public void GenerateContinuesSeveralPromptsAsEachAlone()
    {
        string[] prompts = ["import os\n", "def add(a, b):\n"];
        string[] args = ["--max-tokens", "8", "--dtype", "float32", "--json"];
        (int code, string output, string error) = Run(["generate", "--prompt", prompts[0], "--prompt", prompts[1], .. args]);
        Assert.That(code, Is.Zero, error);
        using JsonDocument document = JsonDocument.Parse(output);
        JsonElement texts = document.RootElement.GetProperty("texts");
        for (int i = 0; i < prompts.Length; i++)
        {
            (_, string alone, _) = Run(["generate", "--prompt", prompts[i], .. args]);
            using JsonDocument expected = JsonDocument.Parse(alone);
            Assert.That(texts[i].GetProperty("text").GetString(), Is.EqualTo(expected.RootElement.GetProperty("text").GetString()));
        }

        (_, output, _) = Run("generate", "--prompt", prompts[0], "--prompt", prompts[1], "--max-tokens", "2");
        Assert.That(output, Does.StartWith("--- 2 tokens").And.Contain("\n" + prompts[1]).And.Contain("tokens/s"));
    }

    [Test]
    public void ChatReadsOnlyTheNewTurnsAndBeginsAnewWhenAsked()
    {
        string[] args = ["chat", "--chat-template", "llama3", "--max-tokens", "6", "--system", "Write Python."];
        (int code, string output, string error) = Chat("Hello\n\nAgain\n/reset\nHello\n/exit\nnever", [.. args, "--json"]);
        Assert.That(code, Is.Zero, error);
        using JsonDocument document = JsonDocument.Parse(output);
        JsonElement[] exchanges = [.. document.RootElement.GetProperty("exchanges").EnumerateArray()];
        (int Cached, int New, int Reply)[] counts = [.. exchanges.Select(exchange => (
            exchange.GetProperty("cached_tokens").GetInt32(),
            exchange.GetProperty("new_tokens").GetInt32(),
            exchange.GetProperty("reply_tokens").GetInt32()))];
        using (Assert.EnterMultipleScope())
        {
            Assert.That(counts, Has.Length.EqualTo(3));
            Assert.That(counts[0].Cached, Is.Zero);
            Assert.That(counts[1].Cached, Is.EqualTo(counts[0].New + counts[0].Reply - 1), "the last token is read with the next turn");
            Assert.That(counts[1].New, Is.LessThan(counts[0].New), "no system and no beginning");
            Assert.That(counts[2], Is.EqualTo(counts[0]));
            Assert.That(exchanges[2].GetProperty("assistant").GetString(), Is.EqualTo(exchanges[0].GetProperty("assistant").GetString()));
        }

        (code, output, error) = Chat("Hello\n", args);
        using (Assert.EnterMultipleScope())
        {
            Assert.That(code, Is.Zero, error);
            Assert.That(output, Does.StartWith("> ").And.Contain("--- read").And.Contain("dense fp16"));
        }
    }

    [Test]
    public void AChatGoesOnFromAFile()
    {
        using TemporaryDirectory directory = new();
        string[] args = ["chat", "--chat-template", "llama3", "--max-tokens", "6", "--json"];
        (_, string whole, _) = Chat("Hello\nAgain\n", args);
        (int code, _, string error) = Chat("Hello\n", [.. args, "--save", directory.File("chat")]);
        Assert.That(code, Is.Zero, error);
        (code, string output, error) = Chat("Again\n", [.. args, "--load", directory.File("chat"), "--save", directory.File("chat")]);
        Assert.That(code, Is.Zero, error);
        using JsonDocument expected = JsonDocument.Parse(whole), actual = JsonDocument.Parse(output);
        Assert.That(
            actual.RootElement.GetProperty("exchanges")[0].GetRawText(), Is.EqualTo(expected.RootElement.GetProperty("exchanges")[1].GetRawText()));
        Assert.That(actual.RootElement.GetProperty("restore_seconds").GetDouble(), Is.Positive);
        (code, output, _) = Chat("", [.. args[..^1], "--load", directory.File("chat")]);
        Assert.That(code, Is.Zero);
        Assert.That(output, Does.StartWith("--- 4 turns").And.Contain("restored in"));
    }

    [Test]
    public void ATextGoesOnFromAFile()
    {
        using TemporaryDirectory directory = new();
        string file = directory.File("text");
        string[] args = ["generate", "--dtype", "float32", "--json"];
        string whole = Text(["--prompt", "import os\n", "--max-tokens", "20"]);
        string first = Text(["--prompt", "import os\n", "--max-tokens", "12", "--save", file]);
        string second = Text(["--load", file, "--max-tokens", "8", "--save", file]);
        Assert.That(first + second, Is.EqualTo(whole));

        // With a new prompt after it.
        string third = Text(["--load", file, "--prompt", "\ndef add(a, b):", "--max-tokens", "8"]);
        Assert.That(third, Is.EqualTo(Text(["--prompt", $"import os\n{whole}\ndef add(a, b):", "--max-tokens", "8"])));
        (int code, string output, string error) = Run("generate", "--dtype", "float32", "--load", file, "--max-tokens", "1");
        Assert.That(code, Is.Zero, error);
        Assert.That(output, Does.Contain("s to the first token:").And.Contain("tokens restored in"));
        (code, _, error) = Run("generate", "--load", file);
        Assert.That(code, Is.EqualTo(1));
        Assert.That(error, Does.Contain("mustafar.dtype"));

        string Text(string[] more)
        {
            (int code, string output, string error) = Run([.. args, .. more]);
            Assert.That(code, Is.Zero, error);
            using JsonDocument document = JsonDocument.Parse(output);
            return document.RootElement.GetProperty("text").GetString()!;
        }
    }

    [Test]
    public void GenerateRunsWithoutAnyOption()
    {
        (int code, string output, string error) = Run("generate");
        using (Assert.EnterMultipleScope())
        {
            Assert.That(code, Is.Zero, error);
            Assert.That(output, Does.Contain("tokens/s"));
        }
    }

    [Test]
    public void ASeedGivesTheSameText()
    {
        string Text(string seed)
        {
            (_, string output, _) = Run(
                "generate", "--prompt", "def ", "--max-tokens", "20", "--temperature", "1", "--seed", seed, "--json", "--dtype", "float32");
            using JsonDocument document = JsonDocument.Parse(output);
            return document.RootElement.GetProperty("text").GetString()!;
        }

        string first = Text("1");
        using (Assert.EnterMultipleScope())
        {
            Assert.That(Text("1"), Is.EqualTo(first));
            Assert.That(Text("2"), Is.Not.EqualTo(first));
        }
    }

    [Test]
    public void ScoreGivesTheGoldenNumbers()
    {
        using TemporaryDirectory directory = new();
        File.WriteAllText(directory.File("ids.json"), Golden.Json.GetProperty("prompt_ids").GetRawText());
        (int code, string output, string error) = Run(
            "score", "--ids-file", directory.File("ids.json"), "--attention", "dense", "--dtype", "float32", "--json");
        Assert.That(code, Is.Zero, error);
        using JsonDocument document = JsonDocument.Parse(output);
        double[] nll = [.. document.RootElement.GetProperty("nll").EnumerateArray().Select(item => item.GetDouble())];
        Assert.That(nll, Is.EqualTo(Golden.Floats("nll_all").Select(value => (double)value)).Within(1e-3));
    }

    [TestCase(2, "Required command", new string[0])]
    [TestCase(2, "--nonsense", new[] { "generate", "--nonsense" })]
    [TestCase(2, "--max-tokens", new[] { "generate", "--max-tokens", "many" })]
    [TestCase(2, "sparse", new[] { "generate", "--attention", "sparse" })]
    [TestCase(2, "int8", new[] { "generate", "--dtype", "int8" })]
    [TestCase(1, "--max-tokens", new[] { "generate", "--max-tokens", "0" })]
    [TestCase(1, "--threads", new[] { "generate", "--threads", "0" })]
    [TestCase(1, "cpu, cuda or cuda:N", new[] { "generate", "--device", "tpu" })]
    [TestCase(1, "doesn't exist", new[] { "generate", "--model", "no-such-directory" })]
    [TestCase(1, "doesn't exist", new[] { "generate", "--prompt-file", "no-such-file" })]
    [TestCase(1, "both", new[] { "generate", "--prompt-file", "a", "--prompt", "b" })]
    [TestCase(1, "expected one prompt", new[] { "generate", "--prompt", "a", "--prompt", "b", "--save", "c" })]
    [TestCase(1, "expected a compressed cache", new[] { "generate", "--attention", "dense", "--save", "c" })]
    [TestCase(1, "expected a compressed cache", new[] { "chat", "--attention", "dense", "--load", "c" })]
    [TestCase(1, "no-such-file", new[] { "generate", "--load", "no-such-file" })]
    [TestCase(1, "another format", new[] { "generate", "--load", "{short}" })]
    [TestCase(1, "no-such-file", new[] { "chat", "--chat-template", "llama3", "--load", "no-such-file" })]
    [TestCase(2, "jinja", new[] { "chat", "--chat-template", "jinja" })]
    [TestCase(1, "no chat template", new[] { "chat" })]
    [TestCase(1, "<|im_start|>", new[] { "chat", "--chat-template", "chatml" })]
    [TestCase(1, "KeySparsity", new[] { "generate", "--key-sparsity", "1.5" })]
    [TestCase(1, "TopP", new[] { "generate", "--top-p", "2" })]
    [TestCase(1, "--file or --ids-file", new[] { "score" })]
    [TestCase(1, "expected token ids", new[] { "score", "--ids-file", "{short}" })]
    [TestCase(1, "--prefill", new[] { "score", "--ids-file", "{ids}", "--prefill", "100" })]
    [TestCase(1, "--prefill", new[] { "perplexity", "--context", "100", "--prefill", "100" })]
    [TestCase(1, "at least 2048 tokens", new[] { "perplexity", "--file", "{short}" })]
    [TestCase(1, "room", new[] { "recall", "--context", "10" })]
    public void ErrorsAreOneLineOnStandardError(int expectedCode, string expected, string[] args)
    {
        (int code, string output, string error) = Run([.. args, .. args.Length > 0 ? ["--json"] : Array.Empty<string>()]);
        using (Assert.EnterMultipleScope())
        {
            Assert.That(code, Is.EqualTo(expectedCode));
            Assert.That(output, Is.Empty);
            Assert.That(error, Does.StartWith("error: ").And.Contain(expected));
            Assert.That(error.TrimEnd('\n'), Does.Not.Contain('\n'));
            Assert.That(error, Does.Not.Contain("   at "));
        }
    }

    [Test]
    public void ADamagedCheckpointIsNamed()
    {
        using TemporaryDirectory directory = new TemporaryDirectory().With(Golden.Checkpoint);
        File.Delete(directory.File("tokenizer.json"));
        (int code, _, string error) = Run("generate", "--model", directory.Path);
        using (Assert.EnterMultipleScope())
        {
            Assert.That(code, Is.EqualTo(1));
            Assert.That(error, Does.Contain("tokenizer.json"));
        }
    }

    [Test]
    public void TensorsThatAreNotUsedAreNamed()
    {
        using TemporaryDirectory directory = new TemporaryDirectory().With(Golden.Checkpoint);
        string config = File.ReadAllText(directory.File("config.json")).Replace("\"num_hidden_layers\": 6", "\"num_hidden_layers\": 5");
        File.WriteAllText(directory.File("config.json"), config);
        (int code, string output, string error) = Run("generate", "--model", directory.Path, "--max-tokens", "2", "--json");
        using (Assert.EnterMultipleScope())
        {
            Assert.That(code, Is.Zero, error);
            Assert.That(error, Does.StartWith("warning: 9 tensors").And.Contain("model.layers.5."));
            Assert.That(output, Does.StartWith("{"));
        }
    }

    [Test]
    public void HelpNamesEveryCommand()
    {
        (int code, string output, _) = Run("--help");
        using (Assert.EnterMultipleScope())
        {
            Assert.That(code, Is.Zero);
            foreach (string name in (string[])["generate", "chat", "compare", "perplexity", "recall", "score"])
            {
                Assert.That(output, Does.Contain(name));
            }
        }
    }

    private static (int Code, string Output, string Error) Run(params string[] args) => Chat("", args);

    private static (int Code, string Output, string Error) Chat(string input, params string[] args)
    {
        using StringReader lines = new(input);
        using TemporaryDirectory directory = new();
        File.WriteAllText(directory.File("short"), "import os\nprint(os.getcwd())\n");
        File.WriteAllText(directory.File("ids"), "8184, 323 4295\n[869, 258, 1998]");
        string[] filled = [.. args.Select(arg => arg.Replace("{short}", directory.File("short")).Replace("{ids}", directory.File("ids")))];
        using StringWriter output = new() { NewLine = "\n" };
        using StringWriter error = new() { NewLine = "\n" };
        int code = LlamaProgram.Run(filled, lines, output, error, showProgress: false);
        return (code, output.ToString(), error.ToString());
    }
}
