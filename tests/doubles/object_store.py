"""An object store for Spark that behaves as S3A documents it, and fails at a chosen request.

It is a Hadoop file system for s3:// addresses, written in Java and compiled by the compiler that comes with Spark.
Objects are in memory. As with S3A, a folder exists only through its objects or its marker, an object appears when its
stream is closed, and renaming or deleting a folder is a series of requests that can stop halfway.
"""

from pathlib import Path

from pyspark.sql import SparkSession

JAVA = """
import java.io.ByteArrayOutputStream;
import java.io.EOFException;
import java.io.FileNotFoundException;
import java.io.IOException;
import java.net.URI;
import java.util.ArrayList;
import java.util.Iterator;
import java.util.List;
import java.util.TreeMap;
import java.util.TreeSet;
import org.apache.hadoop.conf.Configuration;
import org.apache.hadoop.fs.FSDataInputStream;
import org.apache.hadoop.fs.FSDataOutputStream;
import org.apache.hadoop.fs.FSInputStream;
import org.apache.hadoop.fs.FileAlreadyExistsException;
import org.apache.hadoop.fs.FileStatus;
import org.apache.hadoop.fs.FileSystem;
import org.apache.hadoop.fs.Path;
import org.apache.hadoop.fs.permission.FsPermission;
import org.apache.hadoop.util.Progressable;

public class ObjectStore extends FileSystem {
    private static TreeMap objects = new TreeMap();  // key -> byte[]; a key that ends with a slash marks a folder
    private static int requests = 0;
    private static int failing = 0;
    private static String way = "";
    private static boolean gone = false;
    private static List changes = new ArrayList();

    // what tests call

    public static synchronized void fail(int at, String how) {
        requests = 0;
        failing = at;
        way = how;
        gone = false;
        changes = new ArrayList();
    }

    public static synchronized int requests() {
        return requests;
    }

    public static synchronized String changes() {
        return String.join("\\n", changes);
    }

    public static synchronized TreeMap snapshot() {
        return new TreeMap(objects);
    }

    public static synchronized void restore(TreeMap kept) {
        objects = new TreeMap(kept);
    }

    public static synchronized String keys() {
        return String.join("\\n", new ArrayList(objects.keySet()));
    }

    public static synchronized byte[] read(String key) {
        return (byte[]) objects.get(key);
    }

    public static synchronized void write(String key, byte[] data) {
        objects.put(key, data);
    }

    // the requests that change something, one object each

    private static boolean answerIsLost(String request) throws IOException {
        alive();
        changes.add(request);
        requests++;
        if (requests != failing) {
            return false;
        }
        if (way.equals("the answer is lost")) {
            return true;
        }
        gone = way.equals("the machine dies");
        throw new IOException(way);
    }

    private static void alive() throws IOException {
        if (gone) {
            throw new IOException("the machine is gone");
        }
    }

    private static synchronized void put(String key, byte[] data) throws IOException {
        boolean lost = answerIsLost("PUT " + key);
        objects.put(key, data);
        if (lost) {
            throw new IOException(way);
        }
    }

    private static synchronized void remove(String key) throws IOException {
        boolean lost = answerIsLost("DELETE " + key);
        objects.remove(key);
        if (lost) {
            throw new IOException(way);
        }
    }

    private static synchronized List under(String key) {
        String start = key.isEmpty() ? "" : key + "/";
        List found = new ArrayList();
        for (Iterator i = objects.tailMap(start, true).keySet().iterator(); i.hasNext();) {
            String each = (String) i.next();
            if (!each.startsWith(start)) {
                break;
            }
            found.add(each);
        }
        return found;
    }

    private static String key(Path path) {
        String name = path.toUri().getPath();
        return name.startsWith("/") ? name.substring(1) : name;
    }

    // the file system

    private URI uri;

    public void initialize(URI name, Configuration conf) throws IOException {
        super.initialize(name, conf);
        setConf(conf);
        uri = URI.create(name.getScheme() + "://" + name.getAuthority());
    }

    public String getScheme() {
        return "s3";
    }

    public URI getUri() {
        return uri;
    }

    public Path getWorkingDirectory() {
        return new Path(uri + "/");
    }

    public void setWorkingDirectory(Path path) {
    }

    public FSDataInputStream open(Path path, int size) throws IOException {
        alive();
        byte[] data = read(key(path));
        if (data == null) {
            throw new FileNotFoundException(path.toString());
        }
        return new FSDataInputStream(new In(data));
    }

    public FSDataOutputStream create(Path path, FsPermission permission, boolean overwrite, int size,
            short replication, long block, Progressable progress) throws IOException {
        alive();
        if (!overwrite && exists(path)) {
            throw new FileAlreadyExistsException(path.toString());
        }
        return new FSDataOutputStream(new Out(key(path)), statistics);
    }

    public FSDataOutputStream append(Path path, int size, Progressable progress) throws IOException {
        throw new UnsupportedOperationException("objects cannot be appended to");
    }

    public boolean rename(Path from, Path to) throws IOException {
        alive();
        String source = key(from);
        String target = key(to);
        if (!exists(from) || (exists(to) && getFileStatus(to).isFile())) {
            return false;
        }
        if (exists(to)) {
            target = target + "/" + from.getName();
        }
        List keys = getFileStatus(from).isFile() ? new ArrayList() : under(source);
        if (getFileStatus(from).isFile()) {
            keys.add(source);
        }
        for (Iterator i = keys.iterator(); i.hasNext();) {
            String each = (String) i.next();
            put(target + each.substring(source.length()), read(each));
        }
        for (Iterator i = keys.iterator(); i.hasNext();) {
            remove((String) i.next());
        }
        return true;
    }

    public boolean delete(Path path, boolean recursive) throws IOException {
        alive();
        if (!exists(path)) {
            return false;
        }
        if (read(key(path)) != null) {
            remove(key(path));
            return true;
        }
        List keys = under(key(path));
        if (!recursive && keys.size() > 1) {
            throw new IOException(path + " is not empty");
        }
        for (Iterator i = keys.iterator(); i.hasNext();) {
            remove((String) i.next());
        }
        return true;
    }

    public FileStatus[] listStatus(Path path) throws IOException {
        FileStatus status = getFileStatus(path);
        if (status.isFile()) {
            return new FileStatus[] {status};
        }
        String start = key(path).isEmpty() ? "" : key(path) + "/";
        TreeSet names = new TreeSet();
        for (Iterator i = under(key(path)).iterator(); i.hasNext();) {
            String rest = ((String) i.next()).substring(start.length());
            if (!rest.isEmpty()) {
                names.add(rest.contains("/") ? rest.substring(0, rest.indexOf("/")) : rest);
            }
        }
        List found = new ArrayList();
        for (Iterator i = names.iterator(); i.hasNext();) {
            found.add(getFileStatus(new Path(path, (String) i.next())));
        }
        return (FileStatus[]) found.toArray(new FileStatus[0]);
    }

    public boolean mkdirs(Path path, FsPermission permission) throws IOException {
        put(key(path) + "/", new byte[0]);
        return true;
    }

    public FileStatus getFileStatus(Path path) throws IOException {
        alive();
        Path whole = makeQualified(path);
        byte[] data = read(key(whole));
        if (data != null) {
            return new FileStatus(data.length, false, 1, 1 << 25, 0L, whole);
        }
        if (key(whole).isEmpty() || !under(key(whole)).isEmpty()) {
            return new FileStatus(0L, true, 1, 1 << 25, 0L, whole);
        }
        throw new FileNotFoundException(whole.toString());
    }

    private static class Out extends ByteArrayOutputStream {
        private String key;
        private boolean closed;

        Out(String key) {
            this.key = key;
        }

        public void close() throws IOException {
            if (!closed) {
                closed = true;
                put(key, toByteArray());
            }
        }
    }

    private static class In extends FSInputStream {
        private byte[] data;
        private int at;

        In(byte[] data) {
            this.data = data;
        }

        public int read() {
            return at < data.length ? data[at++] & 255 : -1;
        }

        public int read(byte[] into, int offset, int length) {
            if (at >= data.length) {
                return -1;
            }
            int count = Math.min(length, data.length - at);
            System.arraycopy(data, at, into, offset, count);
            at += count;
            return count;
        }

        public void seek(long to) throws IOException {
            if (to < 0 || to > data.length) {
                throw new EOFException("cannot seek to " + to);
            }
            at = (int) to;
        }

        public long getPos() {
            return at;
        }

        public boolean seekToNewSource(long to) {
            return false;
        }
    }
}
"""
WAYS = ("the machine dies", "the request fails", "the answer is lost")


class ObjectStore:
    "The store behind every s3:// address of a Spark session."

    def __init__(
        self,
        spark: SparkSession,
        classes: Path,  # a folder on the class path of `spark`
    ):
        compiler = spark._jvm.org.codehaus.janino.SimpleCompiler()
        compiler.cook(JAVA)
        for name, code in compiler.getBytecodes().items():
            (classes / f"{name}.class").write_bytes(code)
        spark._jsc.hadoopConfiguration().set("fs.s3.impl", "ObjectStore")
        self.java = spark._jvm.ObjectStore

    def fail(self, at: int, way: str):
        "Make the `at`-th request from now fail in one of WAYS; 0: none."
        self.java.fail(at, way)

    @property
    def requests(self) -> list[str]:
        "Return the modifying requests since the last `fail`."
        return self.java.changes().split("\n")

    def put(self, key: str, text: str):
        "Write an object."
        self.java.write(key, bytearray(text.encode()))

    def objects(self) -> dict[str, bytes]:
        "Return the objects in the store, without folder markers."
        return {key: self.java.read(key) for key in self.java.keys().split("\n") if key and not key.endswith("/")}

    def copy_to(self, folder: Path) -> Path:
        "Write all objects as files, and return `folder`."
        for key, data in self.objects().items():
            (folder / key).parent.mkdir(parents=True, exist_ok=True)
            (folder / key).write_bytes(data)
        return folder
