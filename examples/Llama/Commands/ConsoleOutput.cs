using System.Text.Encodings.Web;
using System.Text.Json;
using System.Text.Json.Serialization;
using Spectre.Console;

namespace Mustafar.Examples.Llama.Commands;

/// <summary>The output of a command: its result goes to one writer, messages and progress to another.</summary>
internal sealed class ConsoleOutput
{
    private static readonly JsonSerializerOptions s_json = new()
    {
        PropertyNamingPolicy = JsonNamingPolicy.SnakeCaseLower,
        DefaultIgnoreCondition = JsonIgnoreCondition.WhenWritingNull,
        Encoder = JavaScriptEncoder.UnsafeRelaxedJsonEscaping,
    };

    private readonly TextWriter _result;
    private readonly TextWriter _messages;
    private readonly bool _showProgress;
    private bool _lineIsOpen;

    /// <summary>Makes an output.</summary>
    /// <param name="result">Standard output.</param>
    /// <param name="messages">Standard error.</param>
    /// <param name="json">Whether the result is one JSON object.</param>
    /// <param name="showProgress">Whether the messages are read from a terminal, where progress can be drawn.</param>
    /// <param name="interrupted">Cancelled when the user wants the command to end; reporting progress then throws.</param>
    public ConsoleOutput(TextWriter result, TextWriter messages, bool json, bool showProgress, CancellationToken interrupted = default)
    {
        Interrupted = interrupted;
        _result = result;
        _messages = messages;
        IsJson = json;
        _showProgress = showProgress && !json;
    }

    /// <summary>Whether the result is one JSON object.</summary>
    public bool IsJson { get; }

    /// <summary>Cancelled when the user wants the command to end.</summary>
    public CancellationToken Interrupted { get; }

    /// <summary>Writes a message on a separate line.</summary>
    public void Message(string text)
    {
        EndLine();
        _messages.WriteLine(text);
    }

    /// <summary>Ends the current line of the result, if one was started.</summary>
    public void EndLine()
    {
        if (_lineIsOpen)
        {
            WriteLine();
        }
    }

    /// <summary>Writes part of a human-readable result; nothing if the result is JSON.</summary>
    public void Write(string text)
    {
        if (!IsJson)
        {
            _lineIsOpen = text.Length == 0 ? _lineIsOpen : !text.EndsWith('\n');
            _result.Write(text);
            _result.Flush();
        }
    }

    /// <summary>Writes a line of a human-readable result; nothing if the result is JSON.</summary>
    public void WriteLine(string text = "") => Write(text + Environment.NewLine);

    /// <summary>Writes the result as JSON; nothing if it is human-readable.</summary>
    public void WriteJson<T>(T result)
        where T : notnull
    {
        if (IsJson)
        {
            _result.WriteLine(JsonSerializer.Serialize(result, s_json));
            _result.Flush();
        }
    }

    /// <summary>Does long work under a progress bar.</summary>
    /// <param name="title">What is done.</param>
    /// <param name="work">The work; it reports the share that is done, 0 to 1.</param>
    public T WithProgress<T>(string title, Func<IProgress<double>, T> work)
    {
        if (!_showProgress)
        {
            return work(new Reporter(null, Interrupted));
        }

        IAnsiConsole console = AnsiConsole.Create(new AnsiConsoleSettings { Out = new AnsiConsoleOutput(_messages) });
        return console.Progress()
            .AutoClear(true)
            .Columns(new TaskDescriptionColumn(), new ProgressBarColumn(), new PercentageColumn(), new RemainingTimeColumn())
            .Start(context => work(new Reporter(context.AddTask(Markup.Escape(title), maxValue: 1), Interrupted)));
    }

    private sealed class Reporter(ProgressTask? task, CancellationToken interrupted) : IProgress<double>
    {
        public void Report(double value)
        {
            interrupted.ThrowIfCancellationRequested();
            if (task is not null)
            {
                task.Value = value;
            }
        }
    }
}
