using System.Diagnostics;
using System.Globalization;
using System.Text.Json;
using Mustafar.Examples.Llama.Commands;

namespace Mustafar.Tests.Llama;

/// <summary>Chats go on after an error in a turn, and what was said is saved however they end.</summary>
[TestFixture]
public sealed class ChatSurvivalTests
{
    private TemporaryDirectory _directory = null!;

    private string Saved => _directory.File("chat.safetensors");

    [SetUp]
    public void MakeDirectory() => _directory = new TemporaryDirectory();

    [TearDown]
    public void DeleteDirectory() => _directory.Dispose();

    // A turn that the context has no room for, whether it is the chat that is long or the line.
    [TestCase("a\nb\nc\n/reset\nd\n", 3)]
    [TestCase("a\n{long}\nb\n", 2)]
    [TestCase("{long}\na\nb\n", 1)]
    public void ATurnThatDoesNotFitIsToldAndTheChatGoesOn(string lines, int failing)
    {
        _directory.WithTinyCheckpoint(config => config["max_position_embeddings"] = 64);
        lines = lines.Replace("{long}", new string('x', 100));
        (int code, string output, string error) = Chat(lines, "--max-tokens", "4", "--save", Saved, "--json");
        Assert.That(code, Is.Zero, error);
        JsonElement[] exchanges = Exchanges(output);
        using (Assert.EnterMultipleScope())
        {
            Assert.That(error, Does.StartWith($"error: turn {failing}: Expected at most").And.Contain("/reset").And.Contain("of 64 tokens"));
            Assert.That(error.Trim(), Does.Not.Contain('\n').And.Not.Contain("Parameter"));
            Assert.That(
                exchanges.Select(exchange => exchange.GetProperty("finish_reason").GetString()),
                Is.EqualTo(exchanges.Select((_, i) => i == failing - 1 ? "error" : "length")));
            Assert.That(exchanges[^1].GetProperty("assistant").GetString(), Is.EqualTo("kkkk"));
        }

        (code, _, error) = Chat("", "--load", Saved);
        Assert.That(code, Is.Zero, error);
    }

    [Test]
    public void AnInterruptedChatIsSaved()
    {
        _directory.WithTinyCheckpoint();
        using CancellationTokenSource interrupt = new();
        using WaitingReader input = new("a\nb\n", interrupt);
        using StringWriter output = new() { NewLine = "\n" }, error = new() { NewLine = "\n" };
        string[] args = ["chat", "--model", _directory.Path, "--max-tokens", "4", "--save", Saved];
        int code = LlamaProgram.Run(args, input, output, error, showProgress: false, cancellationToken: interrupt.Token);
        Assert.That(code, Is.EqualTo(130), error.ToString());
        (code, string loaded, string message) = Chat("c\n", "--load", Saved, "--max-tokens", "4");
        Assert.That(code, Is.Zero, message);
        Assert.That(loaded, Does.StartWith("--- 4 turns"));
    }

    // The program itself, as a shell stops it.
    [TestCase("INT", 130)]
    [TestCase("TERM", 130)]
    [Platform("Linux")]
    public void ASignalSavesTheChat(string signal, int expectedCode)
    {
        _directory.WithTinyCheckpoint();

        // Where the tests run in the background of a shell, SIGINT is ignored, and so it would be in the program.
        string program = Path.Combine(AppContext.BaseDirectory, "Llama.dll");
        string[] arguments = ["--default-signal=INT", "dotnet", program, "chat", "--model", _directory.Path, "--max-tokens", "4", "--save", Saved];
        ProcessStartInfo start = new("env", arguments)
        {
            RedirectStandardInput = true, RedirectStandardOutput = true, RedirectStandardError = true,
        };
        using Process process = Process.Start(start)!;
        Task<string> error = process.StandardError.ReadToEndAsync();
        process.StandardInput.WriteLine("a");
        process.StandardInput.Flush();
        string? line;
        do
        {
            line = process.StandardOutput.ReadLine();
        }
        while (line is not null && !line.StartsWith("--- read", StringComparison.Ordinal));
        Assert.That(line, Is.Not.Null, "a reply came");
        using (Process kill = Process.Start("kill", [$"-{signal}", process.Id.ToString(CultureInfo.InvariantCulture)]))
        {
            kill.WaitForExit();
        }

        bool ended = process.WaitForExit(TimeSpan.FromMinutes(2));
        if (!ended)
        {
            process.Kill(entireProcessTree: true);
        }

        Assert.That(ended, $"the chat ends by SIG{signal}");
        Assert.That(process.ExitCode, Is.EqualTo(expectedCode), error.Result);
        Assert.That(Chat("", "--load", Saved).Output, Does.StartWith("--- 2 turns"));
    }

    [Test]
    public void AChatThatIsInterruptedBeforeItsFirstWordReplacesNoOther()
    {
        _directory.WithTinyCheckpoint();
        File.WriteAllText(Saved, "another");
        using CancellationTokenSource interrupt = new();
        using WaitingReader input = new("", interrupt);
        using StringWriter output = new(), error = new();
        string[] args = ["chat", "--model", _directory.Path, "--save", Saved];
        Assert.That(LlamaProgram.Run(args, input, output, error, showProgress: false, cancellationToken: interrupt.Token), Is.EqualTo(130));
        Assert.That(File.ReadAllText(Saved), Is.EqualTo("another"));
    }

    [Test]
    public void AChatWhoseInputFailsIsSaved()
    {
        _directory.WithTinyCheckpoint();
        using FailingReader input = new("a\n");
        using StringWriter output = new(), error = new();
        string[] args = ["chat", "--model", _directory.Path, "--max-tokens", "4", "--save", Saved];
        Assert.That(LlamaProgram.Run(args, input, output, error, showProgress: false), Is.EqualTo(1));
        Assert.That(error.ToString(), Does.StartWith("error: the line is cut"));
        Assert.That(Chat("", "--load", Saved).Output, Does.StartWith("--- 2 turns"));
    }

    [TestCase("chat")]
    [TestCase("generate")]
    public void AFileThatCannotBeWrittenIsToldBeforeTheModelIsLoaded(string command)
    {
        _directory.WithTinyCheckpoint();
        File.Delete(_directory.File("model.safetensors"));
        string path = _directory.File("none/x");
        (int code, string output, string error) = Run("a\n", command, "--model", _directory.Path, "--save", path);
        using (Assert.EnterMultipleScope())
        {
            Assert.That(code, Is.EqualTo(1));
            Assert.That(output, Is.Empty);
            Assert.That(error, Does.StartWith($"error: --save: {path}: the directory").And.Not.Contain(".tmp"));
        }
    }

    [Test]
    public void IdsWithoutATokenAreNeverDrawn()
    {
        _directory.WithTinyCheckpoint(config => config["vocab_size"] = 512, favourite: 400);
        foreach (string[] how in (string[][])
            [["--temperature", "1"], ["--temperature", "0"], ["--beams", "3"], ["--best-of", "3", "--temperature", "1.5", "--top-k", "5"]])
        {
            (int code, _, string error) = Run("", ["generate", "--model", _directory.Path, "--prompt", "hi", "--max-tokens", "32", .. how]);
            Assert.That(code, Is.Zero, $"{string.Join(' ', how)}: {error}");
        }

        (int chatCode, _, string chatError) = Chat("a\nb\n", "--temperature", "1", "--max-tokens", "32", "--save", Saved);
        using (Assert.EnterMultipleScope())
        {
            Assert.That(chatCode, Is.Zero, chatError);
            Assert.That(chatError, Is.Empty);
            Assert.That(File.Exists(Saved));
        }
    }

    [Test]
    public void AByteOrderMarkIsNotPartOfTheFirstTurn()
    {
        _directory.WithTinyCheckpoint();
        (_, string output, _) = Chat("\uFEFFa\n\uFEFFb\n", "--max-tokens", "2", "--json");
        Assert.That(Exchanges(output).Select(exchange => exchange.GetProperty("user").GetString()), Is.EqualTo(new[] { "a", "\uFEFFb" }));
    }

    [Test]
    public void LinesAreAskedForOnTerminalsOnly()
    {
        _directory.WithTinyCheckpoint();
        foreach ((bool inputIsTerminal, bool outputIsTerminal) in (ReadOnlySpan<(bool, bool)>)[(true, true), (true, false), (false, true)])
        {
            using StringReader input = new("a\n");
            using StringWriter output = new(), error = new();
            string[] args = ["chat", "--model", _directory.Path, "--max-tokens", "2"];
            LlamaProgram.Run(args, input, output, error, showProgress: false, inputIsTerminal, outputIsTerminal);
            Assert.That(output.ToString().Contains("> "), Is.EqualTo(inputIsTerminal && outputIsTerminal));
        }
    }

    private static JsonElement[] Exchanges(string output)
    {
        using JsonDocument document = JsonDocument.Parse(output);
        return [.. document.RootElement.Clone().GetProperty("exchanges").EnumerateArray()];
    }

    private (int Code, string Output, string Error) Chat(string input, params string[] args) =>
        Run(input, ["chat", "--model", _directory.Path, .. args]);

    private static (int Code, string Output, string Error) Run(string input, params string[] args)
    {
        using StringReader lines = new(input);
        using StringWriter output = new() { NewLine = "\n" }, error = new() { NewLine = "\n" };
        int code = LlamaProgram.Run(args, lines, output, error, showProgress: false);
        return (code, output.ToString(), error.ToString());
    }

    // Like a terminal where nothing more is typed, and then Ctrl-C.
    private sealed class WaitingReader(string text, CancellationTokenSource interrupt) : StringReader(text)
    {
        public override string? ReadLine()
        {
            if (base.ReadLine() is string line)
            {
                return line;
            }

            interrupt.Cancel();
            Thread.Sleep(TimeSpan.FromSeconds(5));
            return "too late";
        }
    }

    private sealed class FailingReader(string text) : StringReader(text)
    {
        public override string? ReadLine() => base.ReadLine() ?? throw new IOException("the line is cut");
    }
}
